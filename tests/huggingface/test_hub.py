"""The hub, as far as it answers without a network: names, cards, and what is said where it is away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from navit_clip.errors import CheckpointError, ExportError
from navit_clip.huggingface.export import main as export
from navit_clip.huggingface.hub import PATTERNS, fetch, push
from navit_clip.tokenizer import train_tokenizer
from navit_clip.weights import save_model
from tests.huggingface.test_export import CAPTIONS, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with a recipe, evaluations during it and one afterwards."""
    folder = tmp_path_factory.mktemp("run")
    save_model(trained(), train_tokenizer(CAPTIONS * 2, 600), folder / "checkpoints" / "step-1" / "model")
    (folder / "checkpoints" / "latest").write_text("step-1")
    settings = {
        "pairs": 1000,
        "seed": 3,
        "data": {"shards": ["/somewhere/cc3m-{000..331}.tar"], "resolution": {"min_side": 64}},
        "optimizer": {"learning_rate": 0.001},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    row = {"dataset": "stamps", "task": "zeroshot_retrieval", "num_samples": 87, "tokens_per_image": 256}
    rows = [{**row, "metrics": {"recall@1": value}} for value in (0.25, 0.5)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"loss": 3.0}, *rows])))
    (folder / "eval").mkdir()
    record = {"dataset": "/data/pets", "task": "zeroshot_classification", "metrics": {"acc1": 0.75}}
    (folder / "eval" / "pets.json").write_text(json.dumps(record))
    return folder


def test_a_card_says_how_the_model_was_trained_and_judged(run, tmp_path):
    export([str(run), str(tmp_path / "out"), "--license", "apache-2.0"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    header = card.data.to_dict()
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "zero-shot-image-classification"
    for line in (
        "| image-text pairs seen | 1000 |",
        "| image sides drawn (pixels) | min_side 64 |",
        "| peak learning rate | 0.001 |",
        "Data: `cc3m-{000..331}.tar`.",
        "| stamps | zeroshot_retrieval | recall@1 0.5 | 87 | 256 |",
        "| pets | zeroshot_classification | acc1 0.75 |",
    ):
        assert line in card.text
    assert "/somewhere" not in card.text


def test_a_push_without_a_network_says_so_and_leaves_the_folder(run, tmp_path):
    with pytest.raises(ExportError, match="--push someone/stamps: the hub does not take"):
        export([str(run), str(tmp_path / "out"), "--push", "someone/stamps"])
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("name", ["stamps", "a/b/c", "someone/ends-with-.", "someone/two--dashes", ""])
def test_impossible_names_are_refused_before_anything_is_done(run, tmp_path, name):
    with pytest.raises(ExportError, match="--push"):
        export([str(run), str(tmp_path / "out"), "--push", name])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match="--push"):
        push(tmp_path, name)


def test_nothing_that_runs_is_fetched():
    assert not [pattern for pattern in PATTERNS if pattern.endswith((".py", ".bin", ".pt", "*"))]
    with pytest.raises(CheckpointError, match="not to be had from the hub"):
        fetch("someone/nothing")
