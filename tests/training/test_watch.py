"""Steps whose gradient is not finite: skipped on all ranks alike, and no more than a few in a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import training.loop
from navit_clip.distributed import World
from navit_clip.errors import DivergenceError
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.checkpoint import CheckpointConfig
from training.config import RunConfig
from training.engine import Engine, EngineConfig
from training.gradient import accumulate_gradient
from training.optimizer import OptimizerConfig
from training.train import run_training

ADAMW, MUON = OptimizerConfig(), OptimizerConfig(kind="muon")


def train_with_nan(world: World, runs: list[tuple[RunConfig, Sequence[int]]]) -> list[str]:
    """Trains while, in some steps, the last rank's embeddings are NaN; returns how each run ended."""
    said = []
    torch.compiler.set_stance("force_eager")  # DeepSpeed has Muon compiled, which takes a minute
    for config, bad_steps in runs:
        steps, embed = count(1), Engine.embed

        def accumulate(engine: Engine, *arguments: Any, steps=steps, embed=embed, bad_steps=bad_steps):
            def embed_badly(batch):
                embeddings = embed(engine, batch)
                return embeddings._replace(image=embeddings.image * math.nan)

            if next(steps) in bad_steps and world.rank == world.size - 1:
                engine.embed = embed_badly
            contrast = accumulate_gradient(engine, *arguments)
            vars(engine).pop("embed", None)
            return contrast

        training.loop.accumulate_gradient = accumulate
        try:
            run_training(config, world)
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
