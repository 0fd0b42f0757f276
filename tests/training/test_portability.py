"""A checkpoint at other ranks and another ZeRO stage: the same to the bit there, and the same steps after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from safetensors.torch import load_file

from navit_clip.distributed import World
from navit_clip.tokenizer import load_tokenizer
from tests.ranks import on_ranks
from tests.training_builders import small_run
from tests.training_steps import LEARNING_RATE, make_model, make_parts, take_step
from training.checkpoint import CheckpointConfig, CheckpointWriter, Progress
from training.config import RunConfig
from training.engine import Engine, EngineConfig
from training.optimizer import OptimizerConfig, make_optimizer
from training.resume import find_checkpoint

BEFORE, AFTER = 3, 3
Kind = Literal["adamw", "muon"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def go_on(
    world: World, config: RunConfig, settings: EngineConfig, start: Path | None, out: Path
) -> list[float]:
    """Goes on from a checkpoint, or comes to where one is taken: saves there, and again some steps later."""
    steps, model = make_parts(config, BEFORE + AFTER, world), make_model(config)
    checkpoint = None if start is None else find_checkpoint(start, "latest", world).checkpoint
    if checkpoint is not None:
        checkpoint.load_weights(model)
    torch.compiler.set_stance("force_eager")  # DeepSpeed has Muon compiled, which takes a minute
    trained = Engine(settings, model, make_optimizer(config.optimizer, model), world)
    if checkpoint is not None:
        checkpoint.restore(trained)
    else:
        for parts in steps[:BEFORE]:
            take_step(trained, parts, world)
    tokenizer = load_tokenizer(config.tokenizer)
    with CheckpointWriter(out, CheckpointConfig(), config.model, tokenizer, world, print) as writer:
        writer.save(Progress(step=BEFORE), trained, None)
    world.barrier()  # the main rank writes
    evaluated = trained.whole_model().state_dict()
    (model_file,) = out.glob("checkpoints/*/model/model.safetensors")
    assert all(weight.equal(evaluated[name]) for name, weight in load_file(model_file).items())
    losses = [take_step(trained, parts, world) for parts in steps[BEFORE:]]
    with CheckpointWriter(out / "end", CheckpointConfig(), config.model, tokenizer, world, print) as writer:
        writer.save(Progress(step=BEFORE + AFTER), trained, None)
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


def engine(stage: int, **changes: Any) -> EngineConfig:
    """Without clipping, which Muon cannot have."""
    return EngineConfig(
        zero_stage=stage, precision="fp32", average_decay=0.5, gradient_clipping=0.0, **changes
    )


SOME = [(1, engine(0)), (4, engine(3))]
ALL = [*SOME, (2, engine(1, offload_optimizer="cpu")), (2, engine(2))]


@pytest.mark.parametrize(
    ("kind", "others"),
    [("adamw", SOME), *(pytest.param(kind, ALL, marks=pytest.mark.slow) for kind in KINDS)],
)
def test_weights_and_moments_cross_ranks_and_stages(
    tmp_path: Path, kind: Kind, others: list[tuple[int, EngineConfig]]
):
    config = small_run(tmp_path)
    optimizer = OptimizerConfig(kind=kind, learning_rate=LEARNING_RATE)
    config = replace(config, optimizer=optimizer, engine=engine(2))
    check(config, engine(2), 2, others, tmp_path)


@pytest.mark.slow
def test_moments_on_nvme_are_those_in_memory(tmp_path: Path):
    # What is smaller than a megabyte DeepSpeed keeps in memory.
    tower = {"width": 256, "depth": 1, "num_heads": 2, "mlp_dim": 1024}
    image = {**tower, "patch_size": 8, "position": {"table_side": 4}}
    config = small_run(tmp_path, model={"image": image, "text": {**tower, "vocab_size": 512}})
    on_nvme = engine(3, offload_optimizer="nvme", offload_folder=str(tmp_path / "nvme"))
    check(config, engine(0), 1, [(1, on_nvme), (2, on_nvme)], tmp_path)


def check(
    config: RunConfig, first: EngineConfig, ranks: int, others: list[tuple[int, EngineConfig]], folder: Path
) -> None:
    """A checkpoint of the first engine is the same in the others, and so are the steps after it."""
    saved = folder / "saved"
    expected = torch.tensor(on_ranks(ranks, go_on, config, first, None, saved)).mean(dim=0)
    for ranks, settings in others:
        out = folder / f"{ranks} ranks, stage {settings.zero_stage}"
        losses = torch.tensor(on_ranks(ranks, go_on, config, settings, saved, out)).mean(dim=0)
        assert contents(out) == contents(saved), out.name
        assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
        for file in ("model/model.safetensors", "weights.safetensors", "moments.safetensors"):
            assert distance(out / "end", saved / "end", file) < 1e-5, (out.name, file)
