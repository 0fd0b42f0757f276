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
from navit_clip.tokenizer import train_tokenizer
from navit_clip.weights import load_model, resolve_model_folder
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.checkpoint import CheckpointConfig
from training.config import RunConfig
from training.engine import EngineConfig
from training.train import run_training

CHECKPOINT = CheckpointConfig(every=2, keep=0)
EXACT = ("loss", "gradient_norm", "logit_scale", "logit_bias", "learning_rate", "pairs", "epoch")
EXACT += ("fill", "images_per_batch", "text_tokens_per_batch", "packing_wait")


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_on_ranks(world: World, configs: list[tuple[RunConfig, str | None]]) -> None:
    for config, resume in configs:
        run_training(config, world, resume)


def refusals(world: World, attempts: list[tuple[RunConfig, str | None]]) -> list[str]:
    """What each attempt to run is told."""
    said = []
    for config, resume in attempts:
        try:
            run_training(config, world, resume)
            said.append("no error")
        except NavitClipError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


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


def test_what_a_run_goes_back_to_is_its_latest_before_anything_is_saved(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CheckpointConfig(every=1, keep=0))
    on_ranks(1, run_on_ranks, [(config, None)])
    checkpoints = Path(config.folder) / "checkpoints"
    names = sorted(folder.name for folder in checkpoints.glob("step-*"))
    # Resumed at its end, a run only evaluates: as if it had been killed before its next save.
    finished_there = replace(config, pairs=rows(Path(config.folder))[-2]["pairs"])
    on_ranks(1, run_on_ranks, [(finished_there, str(checkpoints / names[-2]))])
    assert (checkpoints / "latest").read_text() == names[-2]


def test_a_resumed_run_follows_its_config_in_what_may_change(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CHECKPOINT)
    on_ranks(1, run_on_ranks, [(config, None)])
    whole = Path(config.folder)
    last = []
    for name, weight_decay in (("alike", config.optimizer.weight_decay), ("decaying", 100.0)):
        run = cut_back(whole, tmp_path / name, "step-00000002")
        changed = replace(
            config, folder=str(run), optimizer=replace(config.optimizer, weight_decay=weight_decay)
        )
        on_ranks(1, run_on_ranks, [(changed, "latest")])
        last.append(rows(run)[-1]["loss"])
    assert last[0] == rows(whole)[-1]["loss"]
    assert last[1] != last[0]


def test_a_run_that_is_resumed_at_its_end_is_scored_once(tmp_path: Path):
    config = small_run(tmp_path)
    held_out = replace(config.validation.data, shards=config.data.shards, side=32)
    config = replace(config, validation=replace(config.validation, data=held_out))
    on_ranks(1, run_on_ranks, [(config, None)])
    before = rows(Path(config.folder))
    on_ranks(1, run_on_ranks, [(config, "latest")])
    assert rows(Path(config.folder)) == before


def test_checkpoints_of_something_else_are_refused(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CHECKPOINT)
    on_ranks(1, run_on_ranks, [(config, None)])
    run = Path(config.folder)
    nowhere = replace(config.validation, data=replace(config.validation.data, shards=["nowhere.tar"]))
    wider = replace(config.model, image=replace(config.model.image, depth=1))
    foreign, broken, lost = (shutil.copytree(run, tmp_path / name) for name in ("foreign", "broken", "lost"))
    for file in (resolve_model_folder(broken).parent / "engine").iterdir():
        file.write_bytes(b"")
    (lost / "checkpoints" / "latest").write_text("step-99999999")
    stage = EngineConfig(zero_stage=1, precision="fp32")
    other_tokenizer = tmp_path / "tokenizer of other captions"
    train_tokenizer(["an owl sits on the old oak", "two hares in the snow"], 512).save(other_tokenizer)

    cases: list[tuple[str, str | None, dict]] = [
        ("holds a run already; go on with --resume latest", None, {}),
        ("holds a run already", str(resolve_model_folder(foreign).parent), {}),
        ("folder: expected a folder for the run", "latest", {"folder": __file__}),
        ("no shard matches 'nowhere.tar'", "latest", {"validation": nowhere}),
        ("nothing to resume", "latest", {"folder": str(tmp_path / "elsewhere")}),
        ("another model: model.image.depth is 2 there and 1 here", "latest", {"model": wider}),
        ("saved by a run with another tokenizer", "latest", {"tokenizer": str(other_tokenizer)}),
        (
            "folder: expected a folder for the run, or nothing yet, found a file",
            None,
            {"folder": f"{__file__}/run"},
        ),
        ("saved with engine.zero_stage 0, this run has 1", "latest", {"engine": stage}),
        ("the checkpoint's place in the data", "latest", {"data": replace(config.data, blocks_per_shard=3)}),
        ("DeepSpeed cannot restore it", "latest", {"folder": str(broken)}),
        ("there is no run.json", "latest", {"folder": str(lost)}),
        ("there is no run.json", str(tmp_path), {"folder": str(tmp_path / "elsewhere")}),
    ]
    attempts = [(replace(config, **changes), resume) for _, resume, changes in cases]
    for (expected, _, _), said in zip(cases, on_ranks(1, refusals, attempts)[0], strict=True):
        assert expected in said


def test_two_ranks_are_refused_by_a_checkpoint_of_one(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CHECKPOINT)
    on_ranks(1, run_on_ranks, [(config, None)])
    for said in on_ranks(2, refusals, [(config, "latest")]):
        assert "saved with ranks 1, this run has 2" in said[0]


def test_impossible_intervals_are_named():
    with pytest.raises(ConfigError, match="every: expected at least 1, found 0"):
        CheckpointConfig(every=0)
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model_folder("/nowhere/at/all")
