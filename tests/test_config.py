"""Config files and overrides become dataclasses, and every mistake in them is named by its dotted key."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from navit_clip.config import build_config, changed_settings, load_config, nearest, save_config
from navit_clip.errors import ConfigError, NavitClipError, SampleError


@dataclass(frozen=True, kw_only=True)
class Tower:
    width: int = 384
    kind: Literal["absolute", "fractional"] = "absolute"
    rate: float = 0.5

    def __post_init__(self):
        if self.width < 1:
            raise ConfigError(f"width: expected at least 1, found {self.width}")


@dataclass(frozen=True, kw_only=True)
class Run:
    image: Tower = field(default_factory=lambda: Tower(width=192))
    towers: list[Tower] = field(default_factory=list)
    frozen: tuple[Tower, ...] = ()
    named: dict[str, Tower] = field(default_factory=dict)
    teacher: Tower | None = None
    sides: tuple[int, int] = (64, 256)
    shards: tuple[str, ...] = ()
    limit: int | None = None
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Task:
    shards: str
    image: Tower = field(default_factory=Tower)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_an_empty_mapping_gives_the_defaults():
    assert build_config(Run, {}, "here") == Run()


def test_a_file_states_only_differences(tmp_path):
    path = write(tmp_path / "run.yaml", "image: {rate: 1e-3}\nsides: [32, 64]\nshards: [a.tar, b.tar]\n")
    expected = Run(image=Tower(width=192, rate=1e-3), sides=(32, 64), shards=("a.tar", "b.tar"))
    assert load_config(Run, path) == expected


def test_overrides_win_in_their_order(tmp_path):
    path = write(tmp_path / "run.yaml", "image: {width: 5}\n")
    overrides = ["image.width=6", "image.width=7", "sides=[1,2]", "limit=null", "compiled=true"]
    expected = Run(image=Tower(width=7), sides=(1, 2), compiled=True)
    assert load_config(Run, path, overrides) == expected


def test_dataclasses_inside_containers_are_built():
    tree = {
        "towers": [{"width": 1}],
        "frozen": [{"width": 2}],
        "named": {"small": {"width": 3}},
        "teacher": {"width": 4},
    }
    run = build_config(Run, tree, "here")
    assert run.towers == [Tower(width=1)]
    assert run.frozen == (Tower(width=2),)
    assert run.named == {"small": Tower(width=3)}
    assert run.teacher == Tower(width=4)


def test_saved_settings_are_complete_and_load_again(tmp_path):
    run = Run(image=Tower(kind="fractional"), frozen=(Tower(width=2),), sides=(1, 2), teacher=Tower())
    save_config(run, tmp_path / "config.yaml")
    assert "compiled: false" in (tmp_path / "config.yaml").read_text()
    assert load_config(Run, tmp_path / "config.yaml") == run


def test_what_differs_from_saved_settings_is_told_by_its_key(tmp_path):
    save_config(Run(named={"small": Tower(width=3)}), tmp_path / "config.yaml")
    assert list(changed_settings(tmp_path / "config.yaml", Run(named={"small": Tower(width=3)}))) == []
    changed = Run(image=Tower(width=8), sides=(64, 128), named={"tiny": Tower(width=1)}, limit=3)
    assert list(changed_settings(tmp_path / "config.yaml", changed)) == [
        "image.width: 192 -> 8",
        "named.tiny: unset -> {'width': 1, 'kind': 'absolute', 'rate': 0.5}",
        "named.small: {'width': 3, 'kind': 'absolute', 'rate': 0.5} -> unset",
        "sides: [64, 256] -> [64, 128]",
        "limit: None -> 3",
    ]


def test_a_file_is_included_under_the_own_keys_of_the_mapping(tmp_path):
    write(tmp_path / "model" / "small.yaml", "width: 12\nkind: fractional\n")
    path = write(tmp_path / "run" / "run.yaml", "image:\n  from: ../model/small.yaml\n  width: 13\n")
    assert load_config(Run, path).image == Tower(width=13, kind="fractional")


def test_included_files_include_others_and_lists_include_too(tmp_path):
    write(tmp_path / "tiny.yaml", "rate: 0.25\n")
    write(tmp_path / "small.yaml", "from: tiny.yaml\nwidth: 12\n")
    path = write(tmp_path / "run.yaml", "towers: [{from: small.yaml}, {from: tiny.yaml}]\n")
    assert load_config(Run, path).towers == [Tower(width=12, rate=0.25), Tower(rate=0.25)]


def test_an_override_includes_a_file_from_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path / "small.yaml", "width: 12\n")
    path = write(tmp_path / "elsewhere" / "run.yaml", "image: {rate: 0.25}\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(Run, path, ["image.from=small.yaml"]).image == Tower(width=12, rate=0.25)


def test_a_file_may_be_included_twice_but_not_by_itself(tmp_path):
    write(tmp_path / "small.yaml", "width: 12\n")
    twice = write(tmp_path / "twice.yaml", "image: {from: small.yaml}\nteacher: {from: small.yaml}\n")
    assert load_config(Run, twice).teacher == Tower(width=12)
    write(tmp_path / "a.yaml", "from: b.yaml\n")
    write(tmp_path / "b.yaml", "image:\n  from: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml from .*b\.yaml from .*a\.yaml: .* includes itself"):
        load_config(Run, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"imagee": {}}, "unknown key imagee; did you mean image?"),
        ({"zzz": 1}, "unknown key zzz; known: image, towers, frozen"),
        ({3: 1}, "unknown key 3;"),
        ({"image": {"widht": 3}}, "unknown key image.widht; did you mean width?"),
        ({"towers": [{}, {"widht": 3}]}, "unknown key towers[1].widht; did you mean width?"),
        ({"named": {"small": {"widht": 3}}}, "unknown key named.small.widht; did you mean width?"),
        ({"teacher": {"widht": 3}}, "unknown key teacher.widht; did you mean width?"),
        ({"image": {"width": "wide"}}, "image.width: expected int, found 'wide'"),
        ({"image": {"width": 1.5}}, "image.width: expected int, found 1.5"),
        ({"image": {"kind": "abs"}}, "image.kind: expected 'absolute' or 'fractional', found 'abs'"),
        ({"image": {"rate": True}}, "image.rate: expected float, found True"),
        ({"image": {"rate": float("nan")}}, "image.rate: expected a finite number, found nan"),
        ({"towers": [{"rate": "inf"}]}, "towers[0].rate: expected a finite number, found inf"),
        (
            {"shards": "a.tar"},
            "shards: expected a list, each item str, found 'a.tar'; write shards: [a.tar], or on a",
        ),
        ({"image": 3}, "image: expected a mapping (width, kind, rate), found 3"),
        ({"image": [1]}, "image: expected a mapping (width, kind, rate), found [1]"),
        ({"image": None}, "image: expected a mapping (width, kind, rate), found None"),
        ({"limit": {"x": 1}}, "limit: expected int or null, found a mapping"),
        ({"compiled": {"x": 1}}, "compiled: expected bool, found a mapping"),
        ({"towers": {"width": 1}}, "towers: expected a list, each item a mapping (width, kind, rate), found"),
        ({"towers": [3]}, "towers[0]: expected a mapping (width, kind, rate), found 3"),
        ({"named": [3]}, "named: expected a mapping, each value a mapping (width, kind, rate), found [3]"),
        ({"sides": [1, 2, 3]}, "sides: expected a list of 2: int, int, found [1, 2, 3]"),
        ({"sides": ["a", 2]}, "sides: expected a list of 2: int, int, found ['a', 2]"),
        ({"shards": "a.tar"}, "shards: expected a list, each item str, found 'a.tar'"),
        ({"image": {"width": "${nothing}"}}, "image.width: Interpolation key 'nothing' not found"),
        ({"image": {"width": "???"}}, "image.width: required, and not set"),
    ],
)
def test_a_mistake_is_named_by_its_dotted_key(tree, message):
    with pytest.raises(ConfigError) as caught:
        build_config(Run, tree, "run.yaml")
    assert str(caught.value).startswith(f"run.yaml: {message}")


def mistakes(kind: type, tree: dict) -> list[str]:
    """The lines of the error."""
    with pytest.raises(ConfigError) as caught:
        build_config(kind, tree, "run.yaml")
    return str(caught.value).split("\n  ")


def test_all_mistakes_are_told_at_once():
    tree = {"imagee": {}, "image": {"widht": 3, "kind": "abs"}, "towers": [{"rate": "high"}, 3], "sides": [1]}
    assert mistakes(Task, tree) == [
        "run.yaml:",
        "unknown key imagee; did you mean image?",
        "unknown key image.widht; did you mean width?",
        "image.kind: expected 'absolute' or 'fractional', found 'abs'",
        "unknown key towers; known: shards, image",
        "unknown key sides; did you mean shards?",
        "shards: required, and not set",
    ]
    del tree["imagee"], tree["image"]
    assert mistakes(Run, tree) == [
        "run.yaml:",
        "towers[0].rate: expected float, found 'high'",
        "towers[1]: expected a mapping (width, kind, rate), found 3",
        "sides: expected a list of 2: int, int, found [1]",
    ]


def test_what_is_wrong_is_not_said_to_be_missing_too():
    with pytest.raises(ConfigError, match=r"^run\.yaml: shards: expected str, found a mapping$"):
        build_config(Task, {"shards": {}}, "run.yaml")


def test_all_failed_checks_are_told_at_once():
    tree = {"image": {"width": 0, "rate": float("nan")}, "towers": [{"width": -1}], "teacher": {"width": -2}}
    with pytest.raises(ConfigError) as caught:
        build_config(Run, tree, "run.yaml")
    assert str(caught.value).split("\n  ") == [
        "run.yaml:",
        "image.rate: expected a finite number, found nan",
        "towers[0].width: expected at least 1, found -1",
        "teacher.width: expected at least 1, found -2",
    ]


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"image": {"width": 0}}, "image.width"),
        ({"towers": [{}, {"width": 0}]}, "towers[1].width"),
        ({"frozen": [{"width": 0}]}, "frozen[0].width"),
        ({"named": {"small": {"width": 0}}}, "named.small.width"),
        ({"teacher": {"width": 0}}, "teacher.width"),
    ],
)
def test_a_dataclass_s_own_check_is_named_by_its_dotted_key(tree, place):
    with pytest.raises(ConfigError) as caught:
        build_config(Run, tree, "run.yaml")
    assert str(caught.value) == f"run.yaml: {place}: expected at least 1, found 0"


def test_what_is_required_must_be_set():
    with pytest.raises(ConfigError, match=r"^run\.yaml: shards: required, and not set$"):
        build_config(Task, {}, "run.yaml")
    assert build_config(Task, {"shards": "a.tar"}, "run.yaml").image == Tower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image: {width: 3", "not readable as YAML"),
        ("3", "not readable as a config"),
        ("- 1\n- 2\n", r"expected a mapping of settings, found \[1, 2\]"),
        ("from: nowhere.yaml\n", r"nowhere\.yaml from .*run\.yaml: no such config file"),
        ("image: {from: [3]}\n", r"from: expected a path, found \[3\]"),
        ("from: .\n", "expected a YAML file, found a folder"),
    ],
)
def test_an_unreadable_file_is_an_error_that_names_it(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Run, write(tmp_path / "run.yaml", text))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.yaml: no such config file"):
        load_config(Run, tmp_path / "run.yaml")


@pytest.mark.parametrize("override", ["image.width", "=3", "sides=[1,"])
def test_an_unreadable_override_is_an_error_that_quotes_it(tmp_path, override):
    with pytest.raises(ConfigError, match="key=value") as caught:
        load_config(Run, write(tmp_path / "run.yaml", "{}"), [override])
    assert repr(override) in str(caught.value)


def test_an_unknown_override_names_the_nearest_key(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key image\.widht; did you mean width\?"):
        load_config(Run, write(tmp_path / "run.yaml", "{}"), ["image.widht=3"])


def test_nearest_lists_all_where_none_is_close():
    assert nearest("qqq", ["width", "depth"]) == "known: width, depth"
    assert nearest("dpeth", ["width", "depth"]).startswith("did you mean depth")


def test_errors_are_one_family_and_cross_processes():
    assert issubclass(ConfigError, NavitClipError)
    assert issubclass(ConfigError, ValueError)
    error = pickle.loads(pickle.dumps(SampleError("no caption", "a.tar/0001")))
    assert (error.cause, error.detail) == ("no caption", "a.tar/0001")
    assert str(error) == "no caption: a.tar/0001"
