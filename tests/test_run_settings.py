"""The config of a run, read by what does not train: every way in which it cannot be is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from navit_clip.errors import ConfigError
from navit_clip.huggingface.examples import find_examples
from navit_clip.huggingface.run_facts import read_run_facts
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from navit_clip.run_settings import RunSettings
from navit_clip.weights import save_model, usual_tokens
from tests.data_builders import small_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    size = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    config = ClipConfig(
        image=ImageTowerConfig(**size, patch_size=4, position=PositionConfig(table_side=3)),
        text=TextTowerConfig(**size, vocab_size=600),
    )
    save_model(TwoTowers(config), small_tokenizer(), folder / "checkpoints" / "step-1" / "model")
    (folder / "checkpoints" / "latest").write_text("step-1")
    return folder


EVERYTHING = ("tokens", "card", "examples")


@pytest.mark.parametrize(
    ("config", "said", "who"),
    [
        (b"[1, 2]", r"expected a mapping of settings, found \[1, 2\]", EVERYTHING),
        (b"a: [", "not readable as YAML", EVERYTHING),
        (b"a: \xff", "not readable as YAML", EVERYTHING),
        (b"7", "not readable as a config", EVERYTHING),
        (b"evaluation: 7", "evaluation: expected a mapping, found 7", ("tokens",)),
        (
            b"evaluation: {tokens_per_image: auto}",
            "evaluation.tokens_per_image: expected a whole number, found 'auto'",
            ("tokens",),
        ),
        (
            b"evaluation: {tokens_per_image: true}",
            "evaluation.tokens_per_image: expected a whole number, found True",
            ("tokens",),
        ),
        (
            b"evaluation: {tokens_per_image: 0}",
            "evaluation.tokens_per_image: expected at least 1, found 0",
            ("tokens",),
        ),
        (b"data: [a.tar]", r"data: expected a mapping, found \['a.tar'\]", ("card", "examples")),
        (b"data: {shards: a.tar}", "data.shards: expected a list, found 'a.tar'", ("card", "examples")),
        (
            b"data: {shards: [a.tar, 7]}",
            r"data.shards: expected a list of strings, found \['a.tar', 7\]",
            ("card", "examples"),
        ),
        (b"data: {remote: x}", "data.remote: expected a mapping, found 'x'", ("examples",)),
        (b"data: {remote: {cach: x}}", "data.remote: unknown key cach; did you mean cache", ("examples",)),
        (
            b"validation: {data: {shards: [a.tar], caption_key: 7}}",
            "validation.data.caption_key: expected a string, found 7",
            ("examples",),
        ),
        (b"optimizer: 3", "optimizer: expected a mapping, found 3", ("card",)),
    ],
)
def test_what_cannot_be_is_named(run, config, said, who):
    (run / "config.yaml").write_bytes(config)
    readers = {
        "tokens": lambda path: usual_tokens(path),
        "card": lambda path: read_run_facts(path, "of the weights"),
        "examples": lambda path: find_examples(None, path),
    }
    for name in who:
        with pytest.raises(ConfigError, match=rf"config\.yaml: {said}") as raised:
            readers[name](run)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("config", ["", "{}", "data: null", "data: {shards: null}", "evaluation: {}", "x: 1"])
def test_what_is_not_set_is_not_there(run, config):
    (run / "config.yaml").write_text(config)
    assert usual_tokens(run) is None
    assert read_run_facts(run, "of the weights").shards == []
    assert find_examples(None, run).source.startswith("of generated noise")
    assert RunSettings(run).get("data.remote", dict) is None
