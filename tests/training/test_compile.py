"""Compiled blocks: the same steps, and after the first one nothing compiles again, whatever the packs.

Nor in evaluation: two towers, each with a gradient and without, are half of what dynamo allows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from navit_clip.distributed import World
from tests.ranks import on_ranks
from tests.training_builders import small_run
from tests.training_steps import make_model, make_parts, take_step
from training.config import RunConfig
from training.engine import Engine, EngineConfig
from training.optimizer import make_optimizer
from training.validation import validation_loss

STEPS = 4
KINDS = 4
"""Of passes: towers of two shapes, each with a gradient and without."""


class Outcome(NamedTuple):
    losses: list[float]
    evaluated: list[float]
    """Losses of a step's batches, after it."""
    graphs: list[int]
    """Compiled so far, after each step and the evaluation that follows."""


def fp32(**settings: Any) -> EngineConfig:
    return EngineConfig(precision="fp32", **settings)


def two_shapes(folder: Path) -> RunConfig:
    config = small_run(folder)
    return replace(config, model=replace(config.model, text=replace(config.model.text, mlp_dim=96)))


def train(world: World, config: RunConfig, engines: list[EngineConfig], backend: str) -> list[Outcome]:
    from torch._dynamo.utils import counters

    torch.compile = partial(torch.compile, backend=backend)
    # Of each function; beyond it one would run as if it were not compiled, and would no longer count.
    assert torch._dynamo.config.recompile_limit >= 2 * KINDS
    torch._dynamo.config.recompile_limit = KINDS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    steps, outcomes = make_parts(config, STEPS, world), []
    sizes = {(batch.images.num_tokens, batch.captions.num_tokens) for parts in steps for batch in parts}
    assert len(sizes) > STEPS, "every step must bring new numbers of tokens"
    for settings in engines:
        torch._dynamo.reset()  # else the kinds of all engines would count together
        model = make_model(config)
        for tower in (model.image, model.text):
            tower.transformer.checkpoint_blocks = settings.zero_stage == 2
        engine = Engine(settings, model, make_optimizer(config.optimizer, model), world)
        outcome = Outcome([], [], [])
        for parts in steps:
            outcome.losses.append(take_step(engine, parts, world))
            model = engine.whole_model()
            outcome.evaluated.append(validation_loss(config.validation, config.loss, model, parts, world))
            outcome.graphs.append(counters["stats"]["unique_graphs"])
        outcomes.append(outcome)
    return outcomes


def check(outcomes: list[Outcome], bound: float) -> None:
    plain, *compiled = outcomes
    assert set(plain.graphs) == {0}
    for outcome in compiled:
        assert outcome.graphs[0] > plain.graphs[0]
        assert set(outcome.graphs) == {outcome.graphs[0]}, "something compiled again"
        assert outcome.losses == pytest.approx(plain.losses, rel=bound)
        assert outcome.evaluated == pytest.approx(plain.evaluated, rel=bound)


def test_after_the_first_step_nothing_compiles_again(tmp_path: Path):
    """Traced and differentiated as ever; only what the graphs become is left out, which takes a minute."""
    engines = [fp32(accumulation=2), fp32(accumulation=2, compile=True)]
    check(on_ranks(1, train, two_shapes(tmp_path), engines, "aot_eager")[0], bound=1e-6)


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones(tmp_path: Path):
    stages = [fp32(zero_stage=stage, compile=True) for stage in (0, 2, 3)]
    check(on_ranks(1, train, two_shapes(tmp_path), [fp32(), *stages], "inductor")[0], bound=1e-5)
