from __future__ import annotations

import pytest

from eval.evaluate import _config, _parser, main
from eval.records import read_records
from navit_clip.errors import ConfigError, DataError, NavitClipError
from navit_clip.model import ClipConfig, ImageTowerConfig, TextTowerConfig, TwoTowers
from navit_clip.tokenizer import train_tokenizer
from navit_clip.weights import save_model
from tests.eval_builders import write_labelled

NAMED = ["--dataset", "IMAGES", "--task", "zeroshot_classification", "--label_key", "json.kind"]
COSTS = ["--tokens_per_image", "9", "--token_budget", "64", "--num_workers", "0"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with one checkpoint of a random model."""
    run = tmp_path_factory.mktemp("runs") / "small"
    size = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    image = ImageTowerConfig(**size, patch_size=4)
    model = TwoTowers(ClipConfig(image=image, text=TextTowerConfig(**size, vocab_size=512)))
    save_model(model, train_tokenizer(["a picture"], 512), run / "checkpoints" / "step-00000010" / "model")
    (run / "checkpoints" / "latest").write_text("step-00000010")
    return run


@pytest.fixture
def shard(tmp_path):
    return write_labelled(tmp_path / "images.tar", [0, 1, 2, 0, 1])


def test_named_data_set_by_flags(run_folder, shard, capsys):
    flags = ["--model", str(run_folder), "--dataset", "wds/pictures", "--dataset_root", shard]
    flags += ["--task", "zeroshot_classification", "--label_key", "json.kind"]
    assert main([*flags, "--custom_template_file", "a {}", "{}", *COSTS]) == 0
    output = run_folder / "eval" / "results.jsonl"
    (record,) = read_records(output)
    assert record["dataset"] == "wds/pictures"
    assert record["pretrained"].endswith("step-00000010/model")
    assert record["templates"] == ["a {}", "{}"]
    printed = capsys.readouterr().out
    low, high = record["intervals"]["acc1"]
    assert (
        f"{100 * record['metrics']['acc1']:.2f} %   95 %: {100 * low:.2f} % to {100 * high:.2f} %" in printed
    )
    assert "chance 33.33 %" in printed
    assert str(output) in printed


def test_a_suite_without_a_number_of_patches_takes_the_model_s(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("evaluation: {tokens_per_image: 36}")
    task = "{dataset: a, dataset_root: x.tar, task: zeroshot_retrieval}"
    for name, own in (("without", ""), ("with", "tokens_per_image: 49\n")):
        (tmp_path / f"{name}.yaml").write_text(f"{own}tasks: [{task}]")

    def tokens(suite: str, *flags: str) -> int:
        arguments = ["--model", str(tmp_path / "run"), "--suite", str(tmp_path / suite), *flags]
        return _config(_parser().parse_args(arguments)).tokens_per_image

    assert tokens("without.yaml") == 36
    assert tokens("with.yaml") == 49
    assert tokens("without.yaml", "--tokens_per_image", "64") == 64


def test_suite_to_places_of_its_own(run_folder, shard, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"tasks:\n"
        f"  - {{dataset: a, dataset_root: {shard}, task: zeroshot_retrieval}}\n"
        f"  - {{dataset: a, dataset_root: {shard}, task: zeroshot_classification, label_key: json.kind}}\n"
    )
    output = str(tmp_path / "{model}" / "{dataset}-{task}.json")
    assert main(["--model", str(run_folder), "--suite", str(suite), "--output", output, *COSTS]) == 0
    names = sorted(path.name for path in (tmp_path / "small").glob("[!.]*"))
    assert names == ["a-zeroshot_classification.json", "a-zeroshot_retrieval.json"]
    for template in ("{size}.json", "{}.json", "{model.size}.json", "{model[size]}.json", "{model"):
        with pytest.raises(ConfigError, match=r"expected places among folder, model"):
            main(["--model", str(run_folder), "--suite", str(suite), "--output", template])


def test_a_place_that_cannot_be_written_is_known_before_the_work(run_folder, tmp_path):
    (tmp_path / "file").touch()
    flags = ["--model", str(run_folder), "--dataset", "absent.tar", "--task", "zeroshot_retrieval"]
    for output in (tmp_path, tmp_path / "file" / "result.json"):
        with pytest.raises(ConfigError, match=f"--output: {output} cannot be written"):
            main([*flags, "--output", str(output)])


def test_shards_elsewhere_are_fetched_as_asked(run_folder, shard, tmp_path):
    flags = ["--model", str(run_folder), "--dataset", f"pipe:cat {shard}", "--task", "zeroshot_retrieval"]
    flags += ["--output", str(tmp_path / "results.jsonl"), *COSTS]
    with pytest.raises(DataError, match=r"remote\.pipe_commands allows"):
        main(flags)
    assert main([*flags, "--remote", "pipe_commands=[cat]", f"cache={tmp_path / 'cache'}"]) == 0
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "absent.tar", "--task", "zeroshot_retrieval"], "no shard matches 'absent.tar'"),
        (["--dataset", "objectnet", "--task", "zeroshot_classification"], "three scoring protocols"),
        (["--dataset", "absent", "--task", "zeroshot_retrieval"], "absent: no such folder: /"),
        (
            ["--dataset", "IMAGES", "--task", "zeroshot_classification"],
            "class_names: .* has no classnames.txt",
        ),
        (
            [*NAMED, "--custom_classname_file", "absent.txt"],
            "class_names: no such file: absent.txt",
        ),
        ([*NAMED, "--custom_template_file", "a photo"], "templates: 'a photo' has no {}"),
        ([*NAMED, "--output", "BROKEN"], "broken.jsonl, line 1: expected a JSON object"),
        (["--dataset", "pipe:cat x.tar", "--task", "zeroshot_retrieval"], r"remote\.pipe_commands allows"),
        (
            ["--dataset", "BROKEN", "--task", "zeroshot_retrieval"],
            "expected uncompressed tars alone, found .*l$",
        ),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(
    run_folder, shard, tmp_path, monkeypatch, flags, message
):
    monkeypatch.setattr("eval.evaluate.load_judged", None)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("no result\n{}\n")
    names = {"IMAGES": shard, "BROKEN": str(broken)}
    with pytest.raises(NavitClipError, match=message):
        main(["--model", str(run_folder), *(names.get(flag, flag) for flag in flags)])
    assert broken.read_text() == "no result\n{}\n"


def test_an_evaluation_that_fails_leaves_no_empty_folder(run_folder, tmp_path):
    flags = ["--model", str(run_folder), "--dataset", str(tmp_path / "absent.tar"), "--task"]
    places = ["--output", str(tmp_path / "a" / "results.jsonl"), "--vectors", str(tmp_path / "b" / "vectors")]
    with pytest.raises(DataError, match="no shard matches"):
        main([*flags, "zeroshot_retrieval", *places, *COSTS])
    assert list(tmp_path.iterdir()) == []


def test_a_mistaken_command_line_is_one_line(run_folder, capsys):
    with pytest.raises(
        ConfigError, match=r"^runs/demo: a model follows --model: navit-clip eval --model runs"
    ):
        main(["runs/demo", "--dataset", "a"])
    with pytest.raises(ConfigError, match=r"arguments are required: --model; navit-clip eval --help lists"):
        main(["--dataset", "a"])
    with pytest.raises(ConfigError, match=r"unrecognized arguments: --batch_size=3; "):
        main(["--model", str(run_folder), "--dataset", "a", "--batch_size=3"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "absent.yaml"], "no such config file"),
        (["--suite", "absent.yaml", "--split", "val"], "--split describes a --dataset"),
        (["--dataset", "a"], "--task: expected"),
        (
            ["--dataset", "a", "b", "--dataset_root", "x", "--task", "zeroshot_retrieval"],
            r"need a \{dataset\}",
        ),
        (
            ["--dataset", "a", "--task", "zeroshot_retrieval", "--token_budget", "10"],
            "at least tokens_per_image",
        ),
    ],
)
def test_flags_that_contradict_each_other(run_folder, flags, message):
    with pytest.raises(ConfigError, match=message):
        main(["--model", str(run_folder), *flags])
