"""A checkpoint at other ranks and another ZeRO stage: the same to the bit there, and the same steps after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from navit_clip.distributed import World
from navit_clip.tokenizer import load_tokenizer
from tests.ranks import on_ranks
from tests.training_builders import small_run
from tests.training_steps import make_model, make_parts, take_step
from training.checkpoint import CheckpointConfig, CheckpointWriter, Progress
from training.config import RunConfig
from training.engine import Engine, EngineConfig
from training.optimizer import make_optimizer
from training.resume import find_checkpoint

BEFORE, AFTER = 3, 3


def go_on(world: World, config: RunConfig, stage: int, start: Path | None, out: Path) -> list[float]:
    """Goes on from a checkpoint, or comes to where one is taken: saves there, and again some steps later."""
    steps, model = make_parts(config, BEFORE + AFTER), make_model(config)
    checkpoint = None if start is None else find_checkpoint(start, "latest", world).checkpoint
    if checkpoint is not None:
        checkpoint.load_weights(model)
    settings = EngineConfig(zero_stage=stage, precision="fp32", average_decay=0.5)
    engine = Engine(settings, model, make_optimizer(config.optimizer, model), world)
    if checkpoint is not None:
        checkpoint.restore(engine)
    else:
        for parts in steps[:BEFORE]:
            take_step(engine, parts, world)
    tokenizer = load_tokenizer(config.tokenizer)
    with CheckpointWriter(out, CheckpointConfig(), config.model, tokenizer, world, print) as writer:
        writer.save(Progress(step=BEFORE), engine, None)
    losses = [take_step(engine, parts, world) for parts in steps[BEFORE:]]
    with CheckpointWriter(out / "end", CheckpointConfig(), config.model, tokenizer, world, print) as writer:
        writer.save(Progress(step=BEFORE + AFTER), engine, None)
    return losses


def contents(run: Path) -> dict:
    """What a checkpoint has: the digest of every file, and the steps that the optimizer has taken."""
    (record,) = run.glob("checkpoints/step-*/run.json")
    return {name: json.loads(record.read_text())[name] for name in ("files", "optimizer_steps")}


def distance(found: Path, expected: Path, file: str) -> float:
    """Relative, over all tensors of a file together."""
    sides = [load_file(next(run.glob("checkpoints/step-*")) / file) for run in (found, expected)]
    ours, theirs = (torch.cat([side[name].flatten() for name in sides[0]]) for side in sides)
    return float((ours - theirs).norm() / theirs.norm())


def test_weights_and_moments_cross_ranks_and_stages(tmp_path: Path):
    config, saved = small_run(tmp_path), tmp_path / "2 ranks, stage 2"
    expected = torch.tensor(on_ranks(2, go_on, config, 2, None, saved)).mean(dim=0)
    for ranks, stage in ((1, 0), (4, 3), (2, 1)):
        out = tmp_path / f"{ranks} ranks, stage {stage}"
        losses = torch.tensor(on_ranks(ranks, go_on, config, stage, saved, out)).mean(dim=0)
        assert contents(out) == contents(saved), out.name
        assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
        for file in ("model/model.safetensors", "weights.safetensors", "moments.safetensors"):
            assert distance(out / "end", saved / "end", file) < 1e-5, (out.name, file)
