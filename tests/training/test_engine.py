"""DeepSpeed's steps against plain torch ones: every ZeRO stage, any accumulation, same pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.loss import LossConfig, contrastive_loss
from tests.ranks import on_ranks
from tests.training_builders import small_run
from tests.training_steps import LEARNING_RATE, PARTS, joined, make_model, make_parts, take_step
from training import engine as engine_module
from training.config import RunConfig
from training.engine import Engine, EngineConfig
from training.gradient import accumulate_gradient
from training.optimizer import make_optimizer

STEPS = 30


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def expected(config: RunConfig) -> torch.Tensor:
    """The reference's losses."""
    losses = torch.tensor(plain_losses(config))
    assert losses[-1] < 0.9 * losses[0], "the reference must learn, or agreement means little"
    return losses


def plain_losses(config: RunConfig) -> list[float]:
    """The reference: one process, torch alone, all parts as one batch."""
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    model = make_model(config)
    optimizer = make_optimizer(replace(config.optimizer, learning_rate=LEARNING_RATE), model)
    losses = []
    for parts in make_parts(config, STEPS, alone):
        batch = joined(parts)
        loss = contrastive_loss(LossConfig(), model(batch), [len(batch)], alone)
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.engine.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def engine_losses(
    world: World, config: RunConfig, engines: list[tuple[EngineConfig, bool]]
) -> list[list[float]]:
    """Losses of this rank, which ranks average to the whole batch's, for each engine in turn.

    Buckets are full several times in a backward, as large towers' are, and some weights are larger than one.
    """
    engine_module.BUCKET = 3_000
    steps, results = make_parts(config, STEPS, world), []
    for engine_config, checkpoints_blocks in engines:
        model = make_model(config)
        for tower in (model.image, model.text):
            tower.transformer.checkpoint_blocks = checkpoints_blocks
        engine = Engine(engine_config, model, make_optimizer(config.optimizer, model), world)
        results.append([take_step(engine, parts, world) for parts in steps])
    return results


def fp32(**settings: Any) -> EngineConfig:
    return EngineConfig(precision="fp32", **settings)


Way = tuple[EngineConfig, bool]
"""An engine, and whether blocks are checkpointed."""

SOME: list[tuple[int, list[Way]]] = [
    (1, [(fp32(accumulation=4), False), (fp32(zero_stage=3, accumulation=2), True)]),
    (2, [(fp32(), False), (fp32(zero_stage=1), False), (fp32(zero_stage=2, accumulation=2), False)]),
    (4, [(fp32(zero_stage=2, offload_optimizer="cpu"), False), (fp32(zero_stage=3), False)]),
]
ALL: list[tuple[int, list[Way]]] = [
    (ranks, [(fp32(zero_stage=stage, accumulation=PARTS // ranks // size), False) for stage in range(4)])
    for ranks in (1, 2, 4)
    for size in (1, 2, 4)
    if ranks * size <= PARTS
]


@pytest.mark.parametrize(
    ("ranks", "ways"), [*SOME, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL)]
)
def test_ranks_stages_and_accumulation_take_the_same_steps(
    config: RunConfig, expected: torch.Tensor, ranks: int, ways: list[Way]
):
    by_rank = on_ranks(ranks, engine_losses, config, ways)
    for way, *losses in zip(ways, *by_rank, strict=True):
        error = ((torch.tensor(losses).mean(dim=0) - expected).abs() / expected).max()
        assert error < 1e-5, way


def test_bf16_stays_near_fp32(config: RunConfig, expected: torch.Tensor):
    ways = [(EngineConfig(zero_stage=stage, precision="bf16"), False) for stage in (0, 3)]
    for losses in on_ranks(1, engine_losses, config, ways)[0]:
        torch.testing.assert_close(torch.tensor(losses), expected, rtol=2e-2, atol=0)


def moving_average(world: World, config: RunConfig, stage: int) -> list[dict[str, list[float]]]:
    """The average that an engine keeps, and the same from the weights after each step."""
    model = make_model(config)
    optimizer = make_optimizer(config.optimizer, model)
    engine = Engine(fp32(zero_stage=stage, average_decay=0.5), model, optimizer, world)
    expected = {name: weight.clone() for name, weight in make_model(config).state_dict().items()}
    for first, *_ in make_parts(config, 3, world):
        accumulate_gradient(engine, [first], world.counts(len(first)), LossConfig(), world)
        engine.step(LEARNING_RATE)
        state = engine.state()
        for name, weight in state.weights.items():
            expected[name].lerp_(weight, 0.5)
    found = engine.whole_model().state_dict()
    names = ["image.patch_embedding.weight", "text.head.bias", "logit_bias"] if world.is_main else []
    return [{name: side[name].flatten().tolist() for name in names} for side in (found, expected)]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
def test_the_average_of_the_weights_is_what_is_evaluated(config: RunConfig, ranks: int, stage: int):
    found, average = on_ranks(ranks, moving_average, config, stage)[0]
    for name, values in average.items():
        assert found[name] == pytest.approx(values, rel=1e-5, abs=1e-7), name


class Dtypes(NamedTuple):
    evaluated: torch.dtype
    """What the model that is evaluated computes in."""
    exchanged: dict[str, torch.dtype]
    """What ranks exchange each weight and its gradient in."""


def dtypes(world: World, config: RunConfig) -> list[Dtypes]:
    """At stages where the model that is evaluated is the trained one and a copy."""
    from deepspeed.runtime.torch_autocast import get_comm_dtype

    found = []
    for stage in (0, 3):
        model = make_model(config)
        engine = Engine(
            EngineConfig(zero_stage=stage, precision="bf16"),
            model,
            make_optimizer(config.optimizer, model),
            world,
        )
        exchanged = {name: get_comm_dtype(weight) for name, weight in model.named_parameters()}
        found.append(Dtypes(engine.whole_model().compute_dtype, exchanged))
    return found


def test_bf16_reaches_evaluation_and_what_ranks_exchange(config: RunConfig):
    for found in on_ranks(1, dtypes, config)[0]:
        # The attention backend was chosen for that precision, and kernels of half precision take no other.
        assert found.evaluated == torch.bfloat16
        halves = {name for name, dtype in found.exchanged.items() if dtype == torch.bfloat16}
        products = {
            name
            for name in found.exchanged
            if (".blocks." in name and "norm" not in name) or name.endswith("patch_embedding.weight")
        }
        assert products, "the blocks' weights must be there to be looked at"
        assert products <= halves
        assert not any("norm" in name for name in halves)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"zero_stage": 4}, "zero_stage: expected 0, 1, 2 or 3, found 4"),
        ({"accumulation": 0}, "accumulation: expected at least 1, found 0"),
        ({"offload_optimizer": "cpu"}, "offload_optimizer: cpu needs zero_stage 1 at least, found 0"),
        ({"offload_optimizer": "nvme", "zero_stage": 2}, "nvme needs zero_stage 3 at least, found 2"),
        ({"offload_optimizer": "nvme", "zero_stage": 3}, "offload_folder: expected a folder"),
        ({"gradient_clipping": -1.0}, r"gradient_clipping: expected at least 0, found -1\.0"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**setting)
