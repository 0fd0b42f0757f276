"""Runs that stop and go on: bit for bit what they would have been."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError, NavitClipError
from navit_clip.weights import load_model, resolve_model_folder
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.checkpoint import CheckpointConfig
from training.config import RunConfig
from training.engine import EngineConfig
from training.train import run_training

CHECKPOINT = CheckpointConfig(every=2, keep=0)
EXACT = ("loss", "gradient_norm", "logit_scale", "logit_bias", "learning_rate", "pairs", "epoch")


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_on_ranks(world: World, configs: list[tuple[RunConfig, str | None]]) -> None:
    for config, resume in configs:
        run_training(config, world, resume)


def refusal(world: World, config: RunConfig, resume: str | None) -> str:
    try:
        run_training(config, world, resume)
    except NavitClipError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def cut_back(run: Path, to: Path, step: str) -> Path:
    """A copy of a finished run as it was when it was killed some time after saving `step`."""
    shutil.copytree(run, to)
    (to / "checkpoints" / "latest").write_text(step)
    for folder in (to / "checkpoints").glob("step-*"):
        if folder.name > step:
            shutil.rmtree(folder)
    return to


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, ranks: int, stage: int):
    engine = EngineConfig(zero_stage=stage, precision="fp32")
    config = replace(small_run(tmp_path), checkpoint=CHECKPOINT, engine=engine)
    whole, resumed = Path(config.folder), tmp_path / "resumed"
    on_ranks(ranks, run_on_ranks, [(config, None)])
    cut_back(whole, resumed, "step-00000004")
    on_ranks(ranks, run_on_ranks, [(replace(config, folder=str(resumed)), "latest")])

    last = (whole / "checkpoints" / "latest").read_text()
    assert last > "step-00000004"
    assert (resumed / "checkpoints" / "latest").read_text() == last
    expected = load_file(whole / "checkpoints" / last / "model" / "model.safetensors")
    found = load_file(resumed / "checkpoints" / last / "model" / "model.safetensors")
    for name, weights in expected.items():
        assert weights.equal(found[name]), name
    assert [[row[name] for name in EXACT] for row in rows(resumed)] == [
        [row[name] for name in EXACT] for row in rows(whole)
    ]


def test_a_run_folder_holds_what_users_look_for(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CheckpointConfig(every=2, keep=2))
    on_ranks(1, run_on_ranks, [(config, None)])
    run = Path(config.folder)
    saved = sorted(folder.name for folder in (run / "checkpoints").glob("*"))
    assert len(saved) == 3, "the two newest, and the file that names the last"
    assert saved[0] == "latest"
    model, tokenizer = load_model(resolve_model_folder(run))
    assert model.config == config.model
    assert tokenizer.vocab_size <= config.model.text.vocab_size
    assert "Train Epoch: 0 [" in (run / "out.log").read_text()
    assert "samples: " in (run / "out.log").read_text()
    assert list((run / "tensorboard").iterdir())
    assert all(0.5 < row["fill"] <= 1 for row in rows(run))
    assert rows(run)[-1]["pairs"] >= config.pairs


def test_going_back_keeps_what_latest_names_and_clears_what_a_kill_left(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CheckpointConfig(every=1, keep=0))
    on_ranks(1, run_on_ranks, [(config, None)])
    checkpoints = Path(config.folder) / "checkpoints"
    names = sorted(folder.name for folder in checkpoints.glob("step-*"))
    later = checkpoints / "step-99999998"
    (checkpoints / names[-1]).rename(later)  # of a longer run, which this one does not reach again
    partial = checkpoints / ".step-00000003.partial"
    partial.mkdir()
    again = replace(config, checkpoint=CheckpointConfig(every=1000, keep=1))
    on_ranks(1, run_on_ranks, [(again, str(checkpoints / names[0]))])
    assert (checkpoints / "latest").read_text() == names[-1]
    assert sorted(folder.name for folder in checkpoints.glob("step-*")) == [names[-1], later.name]
    assert not partial.exists()


def test_checkpoints_of_something_else_are_refused(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CHECKPOINT)
    on_ranks(1, run_on_ranks, [(config, None)])
    run = Path(config.folder)

    def refused(resume: str | None = "latest", **changes) -> str:
        return on_ranks(1, refusal, replace(config, **changes), resume)[0]

    assert "holds a run already; go on with --resume latest" in refused(resume=None)
    assert "folder: expected a folder for the run" in refused(folder=__file__)
    nowhere = replace(config.validation, data=replace(config.validation.data, shards=["nowhere.tar"]))
    assert "no shard matches 'nowhere.tar'" in refused(validation=nowhere)
    assert "nothing to resume" in refused(folder=str(tmp_path / "elsewhere"))
    assert "there is no run.json" in refused(resume=str(tmp_path))
    wider = replace(config.model, image=replace(config.model.image, depth=1))
    assert "another model: model.image.depth is 2 there and 1 here" in refused(model=wider)
    stage = EngineConfig(zero_stage=1, precision="fp32")
    assert "saved with engine.zero_stage 0, this run has 1" in refused(engine=stage)
    other_data = replace(config.data, blocks_per_shard=3)
    assert "CheckpointError: the checkpoint's place in the data" in refused(data=other_data)
    for file in (resolve_model_folder(run).parent / "engine").iterdir():
        file.write_bytes(b"")
    assert "DeepSpeed cannot restore it" in refused()
    (run / "checkpoints" / "latest").write_text("step-99999999")
    assert "there is no run.json" in refused()


def test_two_ranks_are_refused_by_a_checkpoint_of_one(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CHECKPOINT)
    on_ranks(1, run_on_ranks, [(config, None)])
    for message in on_ranks(2, refusal, config, "latest"):
        assert "saved with ranks 1, this run has 2" in message


def test_impossible_intervals_are_named():
    with pytest.raises(ConfigError, match="every: expected at least 1, found 0"):
        CheckpointConfig(every=0)
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model_folder("/nowhere/at/all")
