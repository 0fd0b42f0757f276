"""Runs that stop and go on: bit for bit what they would have been."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import training.checkpoint
import training.loop
import training.train
from eval.task_config import TaskConfig
from navit_clip.batch import Batch
from navit_clip.data import TrainLoader
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError, NavitClipError
from navit_clip.json_lines import read_json_lines
from navit_clip.tokenizer import load_tokenizer, train_tokenizer
from navit_clip.weights import load_model, resolve_model_folder
from tests.data_builders import pairs_of
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.checkpoint import CheckpointConfig, Progress, name_latest, sealed
from training.config import RunConfig
from training.engine import Engine, EngineConfig
from training.gradient import accumulate_gradient
from training.resume import find_checkpoint
from training.stop import StopRequest
from training.train import run_training
from training.validation import validation_loss

CHECKPOINT = CheckpointConfig(every=2, keep=0)
ALONE = World(rank=0, size=1, device=torch.device("cpu"))
EXACT = ("loss", "gradient_norm", "logit_scale", "logit_bias", "learning_rate", "pairs", "epoch")
EXACT += ("fill", "images_per_batch", "text_tokens_per_batch", "packing_wait")


def fp32(**settings: Any) -> EngineConfig:
    return EngineConfig(precision="fp32", **settings)


def rows(run: Path) -> list[dict]:
    """What a run measured; where it was resumed it says beside that."""
    return [row for row in read_json_lines(run / "metrics.jsonl") if row["kind"] != "resumed"]


def run_on_ranks(world: World, configs: list[tuple[RunConfig, str | None]]) -> None:
    with warnings.catch_warnings(record=True) as told:
        for config, resume in configs:
            run_training(config, world, resume)
    assert not [warning for warning in told if warning.category is FutureWarning]


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
    assert re.search(
        r"samples up to the last batch: \d+ read, .*; the other \d+ waited for a batch",
        (run / "out.log").read_text(),
    )
    assert "512, and the tokenizer has" in (run / "out.log").read_text()
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
    assert [folder.name for folder in checkpoints.glob("step-*")] == [names[-1]]
    given_up = [name.replace("step", "given-up") for name in [*names[1:-1], later.name]]
    assert sorted(folder.name for folder in checkpoints.glob("given-up-*")) == given_up
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
    said = "changed since it was saved: optimizer.weight_decay: 0.0001 -> 100.0"
    assert [said in (tmp_path / name / "out.log").read_text() for name in ("alike", "decaying")] == [
        False,
        True,
    ]


def test_a_run_that_is_resumed_at_its_end_is_scored_once(tmp_path: Path):
    config = small_run(tmp_path)
    held_out = replace(config.validation.data, shards=config.data.shards, side=32)
    config = replace(config, validation=replace(config.validation, data=held_out))
    run = Path(config.folder)
    on_ranks(1, run_on_ranks, [(config, None)])
    before, saved = rows(run), (run / "config.yaml").read_text()
    assert "already at its end" not in (run / "out.log").read_text()
    on_ranks(1, run_on_ranks, [(replace(config, pairs=100), "latest")])
    assert rows(run) == before
    assert (run / "config.yaml").read_text() == saved
    said = (run / "out.log").read_text()
    assert f"already at its end, {before[-1]['pairs']} of 100 pairs" in said
    assert "changed since it was saved: pairs: 120 -> 100" in said


def test_checkpoints_of_something_else_are_refused(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CHECKPOINT)
    on_ranks(1, run_on_ranks, [(config, None)])
    run = Path(config.folder)
    nowhere = replace(config.validation, data=replace(config.validation.data, shards=["nowhere.tar"]))
    cannot = "expected a place that a run can be written to"
    no_shard = {"data": replace(config.data, shards=[__file__])}
    absent = TaskConfig(dataset=str(tmp_path / "absent"), task="zeroshot_retrieval")
    unjudged = replace(config.evaluation, tasks=[absent])
    wider = replace(config.model, image=replace(config.model.image, depth=1))
    foreign, broken, lost = (shutil.copytree(run, tmp_path / name) for name in ("foreign", "broken", "lost"))
    with (resolve_model_folder(broken).parent / "moments.safetensors").open("ab") as file:
        file.write(b"0")
    (lost / "checkpoints" / "latest").write_text("step-99999999")
    other_tokenizer = tmp_path / "tokenizer of other captions"
    train_tokenizer(["an owl sits on the old oak", "two hares in the snow"], 512).save(other_tokenizer)

    cases: list[tuple[str, str | None, dict]] = [
        ("holds a run already; go on with --resume latest", None, {}),
        ("holds a run already", str(resolve_model_folder(foreign).parent), {}),
        (f"folder: {cannot}, found {__file__}: {__file__} is a file", "latest", {"folder": __file__}),
        ("validation.data.shards: no shard matches 'nowhere.tar'", "latest", {"validation": nowhere}),
        (f"data.shards: shard pattern {__file__!r}: expected uncompressed tars alone", "latest", no_shard),
        (
            f"evaluation.tasks: {absent.dataset}: no such folder: {absent.dataset}",
            None,
            {"evaluation": unjudged, "folder": str(tmp_path / "elsewhere")},
        ),
        (
            "latset: expected latest, auto or a checkpoint, found no such folder; did you mean latest?",
            "latset",
            {},
        ),
        ("nothing to resume", "latest", {"folder": str(tmp_path / "elsewhere")}),
        ("another model: model.image.depth is 2 there and 1 here", "latest", {"model": wider}),
        ("saved by a run with another tokenizer", "latest", {"tokenizer": str(other_tokenizer)}),
        (f"folder: {cannot}, found /proc/run: /proc cannot be written", None, {"folder": "/proc/run"}),
        (f"folder: {cannot}, found {__file__}/run: {__file__} is", None, {"folder": f"{__file__}/run"}),
        ("the checkpoint's place in the data", "latest", {"data": replace(config.data, blocks_per_shard=3)}),
        ("not whole: moments.safetensors is not as it was written", "latest", {"folder": str(broken)}),
        ("latest: names no checkpoint: ", "latest", {"folder": str(lost)}),
        ("there is no run.json", str(tmp_path), {"folder": str(tmp_path / "elsewhere")}),
    ]
    attempts = [(replace(config, **changes), resume) for _, resume, changes in cases]
    for (expected, _, _), said in zip(cases, on_ranks(1, refusals, attempts)[0], strict=True):
        assert expected in said


def pairs_trained_on(world: World, config: RunConfig, resume: str | None) -> list[tuple[str, bytes]]:
    """Runs; returns this rank's pairs, each with what was drawn for it."""
    pairs = []

    def accumulate(engine: Engine, batches: Sequence[Batch], *arguments: Any):
        pairs.extend(pair for batch in batches for pair in pairs_of(batch))
        return accumulate_gradient(engine, batches, *arguments)

    training.loop.accumulate_gradient = accumulate
    run_training(config, world, resume)
    training.loop.accumulate_gradient = accumulate_gradient
    return pairs


def test_a_run_that_goes_on_at_other_ranks_sees_every_pair_once_an_epoch(tmp_path: Path):
    config = replace(small_run(tmp_path), engine=fp32(zero_stage=2))
    sizes = replace(config.data.resolution, min_side=40, max_side=96)  # large: no draw is alike by chance
    config = replace(config, data=replace(config.data, resolution=sizes, tokens_per_batch=384))
    epochs: dict[tuple[str, bytes], int] = {}  # of each pair and its draw, from one uninterrupted stream
    visits: Counter[str] = Counter()
    for batch in islice(TrainLoader(config.data, load_tokenizer(config.tokenizer), 8, 64, config.seed), 30):
        for pair in pairs_of(batch):
            epochs[pair] = visits[pair[0]]
            visits[pair[0]] += 1
    assert len(visits) == 60
    assert len(epochs) == visits.total()

    part = replace(config, pairs=30)
    before = [pair for pairs in on_ranks(2, pairs_trained_on, part, None) for pair in pairs]
    assert 30 <= len(before) < 60
    for ranks, stage in ((1, 0), (4, 3)):
        run = shutil.copytree(part.folder, tmp_path / f"{ranks} ranks")
        goes_on = replace(config, folder=str(run), engine=fp32(zero_stage=stage))
        seen = Counter(before)
        for pairs in on_ranks(ranks, pairs_trained_on, goes_on, "latest"):
            seen.update(pairs)
        assert set(seen.values()) == {1}, "no draw comes twice"
        first = [key for key, drawn in seen if epochs.get((key, drawn)) == 0]
        assert sorted(first) == sorted(visits), "the epoch that the run was in is whole"
        assert "its samples dealt again from 2 x 1 workers" in (run / "out.log").read_text()


def ask_to_stop(world: World, config: RunConfig, at_step: int) -> bool:
    """Trains until the last rank alone is sent SIGTERM in a step; returns whether the run says so."""
    steps = count(1)

    def accumulate(*arguments: Any):
        if next(steps) == at_step and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate_gradient(*arguments)

    training.loop.accumulate_gradient = accumulate
    with StopRequest.listening() as stop:
        end = run_training(config, world, None, stop)
    training.loop.accumulate_gradient = accumulate_gradient
    return end.stopped and end.progress.step == at_step


def test_a_run_that_was_asked_to_stop_goes_on_as_if_it_had_not_been(tmp_path: Path):
    engine = fp32(zero_stage=2, average_decay=0.9)
    config = replace(small_run(tmp_path), checkpoint=CheckpointConfig(every=1000), engine=engine)
    on_ranks(2, run_on_ranks, [(config, None)])
    asked = replace(config, folder=str(tmp_path / "asked"))
    assert on_ranks(2, ask_to_stop, asked, 3) == [True, True]
    on_ranks(2, run_on_ranks, [(asked, "auto")])
    folders = [resolve_model_folder(run.folder) for run in (config, asked)]
    expected, found = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(weight.equal(found[name]) for name, weight in expected.items())


def ask_while_validating(world: World, config: RunConfig) -> tuple[bool, int, bool]:
    """Whether the run is stopped in its evaluation, tasks begun before, whether it is when it goes on."""
    begun = count()

    def validate(*arguments: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return validation_loss(*arguments)

    def evaluate(*_: Any, **__: Any):
        next(begun)
        yield from ()

    training.train.validation_loss, training.train.evaluate = validate, evaluate
    with StopRequest.listening() as stop:
        stopped = run_training(config, world, None, stop).stopped
    training.train.validation_loss = validation_loss
    return stopped, next(begun), run_training(config, world, "auto").stopped


def test_a_run_that_is_asked_to_stop_while_it_is_evaluated_is_evaluated_when_it_goes_on(tmp_path: Path):
    config = small_run(tmp_path, pairs=30)
    held_out = replace(config.validation.data, shards=config.data.shards, side=32)
    config = replace(config, validation=replace(config.validation, data=held_out))
    assert on_ranks(1, ask_while_validating, config) == [(True, 0, False)]
    assert [row["kind"] for row in rows(Path(config.folder))].count("validation") == 1


def test_auto_takes_the_newest_that_is_whole_and_says_why_not_the_others(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CheckpointConfig(every=1, keep=0))
    on_ranks(1, run_on_ranks, [(config, "auto")])
    run = Path(config.folder)
    one, two, *_, latest = sorted((run / "checkpoints").glob("step-*"))
    assert "from the start" in (run / "out.log").read_text()
    for folder in (run / "checkpoints").glob("step-*"):
        if folder not in (one, two, latest):
            shutil.rmtree(folder)
    (latest / "moments.safetensors").write_bytes((latest / "moments.safetensors").read_bytes()[:-9])
    (two / "run.json").unlink()
    found = find_checkpoint(run, "auto", ALONE)
    assert found.checkpoint is not None
    assert found.checkpoint.folder == one
    assert [reason.partition(": ")[2] for reason in found.passed_over] == [
        "not whole: moments.safetensors is not as it was written",
        "not a checkpoint: there is no run.json in it",
    ]
    shutil.rmtree(one)
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        find_checkpoint(run, "auto", ALONE)


RECORDS = {
    "not JSON": b'{"step": 4',
    "not text": b"\xff\x00",
    "of something else": b'{"files": [1]}',
    "empty": b"{}",
}


@pytest.mark.parametrize("record", [*RECORDS, "a digit changed", "a folder"])
def test_auto_passes_over_a_record_that_is_not_as_it_was_written(tmp_path: Path, record: str):
    for step in (1000, 2000):
        (folder := tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        (folder / "run.json").write_text(sealed({"step": step, "pairs": 10 * step, "files": {}}))
        name_latest(folder)
    written = tmp_path / "checkpoints" / "step-00002000" / "run.json"
    if record == "a folder":  # as unreadable as a bad disk's
        written.unlink()
        written.mkdir()
    else:
        changed = written.read_bytes().replace(b"20000", b"70000")
        written.write_bytes(RECORDS.get(record, changed))
    found = find_checkpoint(tmp_path, "auto", ALONE)
    assert found.checkpoint is not None
    assert found.checkpoint.progress == Progress(1000, 10000)
    assert len(found.passed_over) == 1
    assert "step-00002000: not whole: run.json: " in found.passed_over[0]


def test_a_broken_latest_names_nothing_and_is_said(tmp_path: Path):
    (folder := tmp_path / "checkpoints" / "step-00001000").mkdir(parents=True)
    (folder / "run.json").write_text(sealed({"step": 1000, "pairs": 10, "files": {}}))
    (tmp_path / "checkpoints" / "latest").write_text("")
    found = find_checkpoint(tmp_path, "auto", ALONE)
    assert found.checkpoint is not None
    assert "latest: names no checkpoint: ''" in found.passed_over[0]
    with pytest.raises(CheckpointError, match=r"nothing to resume: .*latest: names no checkpoint: ''"):
        find_checkpoint(tmp_path, "latest", ALONE)


def run_out_of_disk(world: World, config: RunConfig) -> str:
    """Trains while no file may grow past a size that a checkpoint needs, as on a disk that is full."""
    steps = count(1)

    def accumulate(*arguments: Any):
        if next(steps) == 30:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        return accumulate_gradient(*arguments)

    training.loop.accumulate_gradient = accumulate
    try:
        return refusals(world, [(config, None)])[0]
    finally:
        training.loop.accumulate_gradient = accumulate_gradient


def test_a_full_disk_is_said_on_all_ranks_and_leaves_the_last_checkpoint_whole(tmp_path: Path):
    config = replace(small_run(tmp_path, pairs=100_000), checkpoint=CheckpointConfig(every=20))
    said, by_the_other = on_ranks(2, run_out_of_disk, config)
    last = Path(config.folder) / "checkpoints" / "step-00000020"
    assert said == by_the_other
    assert "step-00000040: could not be saved" in said
    assert rows(Path(config.folder))[-1]["step"] < 60, "long before the next would be saved"
    assert f"the last whole checkpoint is {last}" in said
    found = find_checkpoint(Path(config.folder), "latest", ALONE).checkpoint
    assert found is not None
    assert found.folder == last
    assert sorted(path.name for path in last.parent.iterdir()) == ["latest", last.name]


def test_every_nth_checkpoint_stays(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CheckpointConfig(every=1, keep=1, keep_every=2))
    on_ranks(1, run_on_ranks, [(config, None)])
    folders = sorted(folder.name for folder in (Path(config.folder) / "checkpoints").glob("step-*"))
    steps = [int(name.removeprefix("step-")) for name in folders]
    assert steps[-1] == rows(Path(config.folder))[-1]["step"]
    assert [step for step in steps if step % 2 == 0] == list(range(2, steps[-1] + 1, 2))
    assert len([step for step in steps if step % 2]) == steps[-1] % 2


def test_impossible_intervals_are_named():
    with pytest.raises(ConfigError, match="every: expected at least 1, found 0"):
        CheckpointConfig(every=0)
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model_folder("/nowhere/at/all")
