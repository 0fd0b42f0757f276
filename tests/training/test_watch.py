"""Steps whose gradient is not finite: skipped on all ranks alike, and no more than a few in a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import training.loop
from navit_clip.batch import Batch, Embeddings
from navit_clip.distributed import World
from navit_clip.errors import DivergenceError
from tests.ranks import on_ranks
from tests.training_builders import small_run
from tests.training_steps import LEARNING_RATE, accumulate, make_model, make_parts, take_step
from training.checkpoint import CheckpointConfig
from training.config import RunConfig
from training.engine import Engine, EngineConfig, EngineState
from training.gradient import accumulate_gradient
from training.optimizer import OptimizerConfig, make_optimizer
from training.train import run_training

ADAMW, MUON = OptimizerConfig(), OptimizerConfig(kind="muon")


def train_with_nan(world: World, runs: list[tuple[RunConfig, Sequence[int]]]) -> list[str]:
    """Trains while, in some steps, the last rank's embeddings are NaN; returns how each run ended."""
    said = []
    torch.compiler.set_stance("force_eager")  # DeepSpeed has Muon compiled, which takes a minute
    for config, bad_steps in runs:
        steps, embed = count(1), Engine.embed

        def accumulate_badly(engine: Engine, *arguments: Any, steps=steps, embed=embed, bad_steps=bad_steps):
            def embed_badly(batch):
                embeddings = embed(engine, batch)
                return embeddings._replace(image=embeddings.image * math.nan)

            if next(steps) in bad_steps and world.rank == world.size - 1:
                engine.embed = embed_badly
            contrast = accumulate_gradient(engine, *arguments)
            vars(engine).pop("embed", None)
            return contrast

        training.loop.accumulate_gradient = accumulate_badly
        try:
            run_training(config, world, "auto")
            said.append("ended")
        except DivergenceError as error:
            said.append(str(error))
        training.loop.accumulate_gradient = accumulate_gradient
    return said


@pytest.mark.parametrize(
    ("ranks", "optimizer"),
    [(1, ADAMW), (2, ADAMW), *(pytest.param(ranks, MUON, marks=pytest.mark.slow) for ranks in (1, 2))],
)
def test_a_bad_step_is_skipped_on_all_ranks_and_five_in_a_row_stop_the_run(
    tmp_path: Path, ranks: int, optimizer: OptimizerConfig
):
    checkpoint = CheckpointConfig(every=2, keep=0)
    clipping = 0.0 if optimizer == MUON else 1.0
    plain = EngineConfig(precision="fp32", average_decay=0.5, gradient_clipping=clipping)
    base = replace(small_run(tmp_path), checkpoint=checkpoint, optimizer=optimizer, engine=plain)
    runs = []
    for stage in range(4):
        engine = replace(plain, zero_stage=stage)
        for name, bad_steps in (("once", [3]), ("for good", range(3, 100))):
            folder = str(tmp_path / f"{name} {stage}")
            runs.append((replace(base, folder=folder, engine=engine, pairs=150), bad_steps))
    results = on_ranks(ranks, train_with_nan, runs)
    for (config, bad_steps), *said in zip(runs, *results, strict=True):
        run = Path(config.folder)
        if len(bad_steps) == 1:
            assert said == ["ended"] * ranks
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            assert [row["step"] for row in rows if row["skipped_steps"]] == [4], "told with the next step"
            assert all(math.isfinite(row["loss"]) for row in rows)
        else:
            for message in said:
                assert "step 7: expected a finite gradient, found none in 5 steps in a row" in message
                assert f"the last whole checkpoint is {run / 'checkpoints' / 'step-00000006'}" in message


def test_steps_in_a_row_are_counted_over_a_resume(tmp_path: Path):
    config = replace(small_run(tmp_path), checkpoint=CheckpointConfig(every=2, keep=0))
    runs = [(config, range(3, 100)), (config, range(100))]
    for message in on_ranks(1, train_with_nan, runs)[0]:
        assert "step 7: expected a finite gradient, found none in 5 steps in a row" in message


def state_after(world: World, config: RunConfig, settings: EngineConfig, with_bad: bool) -> EngineState:
    """Of three steps, the second of which has NaN in one tower's gradient alone, or is left out."""
    model = make_model(config)
    engine = Engine(settings, model, make_optimizer(config.optimizer, model), world)
    first, bad, last = make_parts(config, 3, world)
    take_step(engine, first, world)
    if with_bad:
        embed = engine.embed

        def embed_badly(batch: Batch) -> Embeddings:
            embeddings = embed(batch)
            if embeddings.image.requires_grad:
                embeddings.image.register_hook(lambda gradient: gradient * math.nan)
            return embeddings

        engine.embed = embed_badly
        accumulate(engine, bad, world)
        del engine.embed
        assert not engine.step(LEARNING_RATE)
    take_step(engine, last, world)
    return engine.state()


def differences(world: World, config: RunConfig, ways: list[EngineConfig]) -> list[list[str]]:
    """What a skipped step has left behind, by name, on the main rank."""
    torch.compiler.set_stance("force_eager")  # DeepSpeed has Muon compiled, which takes a minute
    found = []
    for settings in ways:
        skipped, never = (state_after(world, config, settings, with_bad) for with_bad in (True, False))
        parts = ((skipped.weights, never.weights), (skipped.average, never.average))
        parts = (*parts, (skipped.moments, never.moments))
        assert all(of_skipped.keys() == of_never.keys() for of_skipped, of_never in parts)
        assert skipped.optimizer_steps == never.optimizer_steps
        found.append([name for ours, theirs in parts for name in ours if not ours[name].equal(theirs[name])])
    return found


def ways(stages: Sequence[int], offloads: Sequence[Literal["none", "cpu"]]) -> list[EngineConfig]:
    plain = EngineConfig(precision="fp32", average_decay=0.5, gradient_clipping=0.0)
    return [
        replace(plain, zero_stage=stage, offload_optimizer=offload, accumulation=accumulation)
        for stage in stages
        for offload in offloads
        for accumulation in (1, 2)
        if stage or offload == "none"
    ]


@pytest.mark.parametrize(
    ("ranks", "optimizer", "settings"),
    [
        (1, MUON, ways([3], ["none"])[1:]),
        (1, ADAMW, ways([0, 2], ["none"])[1::2]),
        *(
            pytest.param(ranks, optimizer, ways(range(4), ["none", "cpu"]), marks=pytest.mark.slow)
            for ranks in (1, 2)
            for optimizer in (ADAMW, MUON)
        ),
    ],
)
def test_a_skipped_step_leaves_nothing_behind(
    tmp_path: Path, ranks: int, optimizer: OptimizerConfig, settings: list[EngineConfig]
):
    config = replace(small_run(tmp_path), optimizer=optimizer, engine=settings[0])
    assert on_ranks(ranks, differences, config, settings)[0] == [[]] * len(settings)
