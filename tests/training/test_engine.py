"""DeepSpeed's steps against plain torch ones: every ZeRO stage, one rank and two, the same pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from navit_clip.batch import Batch, Captions, PackedImages
from navit_clip.data import TrainLoader
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model import NavitClip
from navit_clip.tokenizer import load_tokenizer
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.config import RunConfig
from training.engine import Engine, EngineConfig
from training.optimizer import make_optimizer

STEPS = 20
LEARNING_RATE = 1e-3
SHARES = 2
"""The stream is cut for two ranks; one rank takes both halves as one batch."""


def make_model(config: RunConfig) -> NavitClip:
    torch.manual_seed(0)
    return NavitClip(config.model)


def make_loaders(config: RunConfig, ranks: list[int]):
    image, text = config.model.image, config.model.text
    tokenizer = load_tokenizer(config.tokenizer)
    return [
        iter(TrainLoader(config.data, tokenizer, image.patch_size, text.context_length, 0, rank, SHARES))
        for rank in ranks
    ]


def joined(batches: list[Batch]) -> Batch:
    """Batches as one batch, in order."""

    def end_to_end(offsets: list[torch.Tensor]) -> torch.Tensor:
        lengths = torch.cat([part.diff() for part in offsets])
        return torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)])

    images, captions = [batch.images for batch in batches], [batch.captions for batch in batches]
    return Batch(
        images=PackedImages(
            patches=torch.cat([part.patches for part in images]),
            position=torch.cat([part.position for part in images]),
            grid=torch.cat([part.grid for part in images]),
            offsets=end_to_end([part.offsets for part in images]),
            max_length=max(part.max_length for part in images),
            max_side=max(part.max_side for part in images),
        ),
        captions=Captions(
            ids=torch.cat([part.ids for part in captions]),
            offsets=end_to_end([part.offsets for part in captions]),
            max_length=max(part.max_length for part in captions),
            identity=torch.cat([part.identity for part in captions]),
        ),
        keys=sum((batch.keys for batch in batches), ()),
    )


def plain_losses(config: RunConfig, accumulation: int = 1) -> list[float]:
    """The reference: one process, torch alone."""
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    model = make_model(config)
    optimizer = make_optimizer(replace(config.optimizer, learning_rate=LEARNING_RATE), model)
    loaders, losses = make_loaders(config, [0, 1]), []
    for _ in range(STEPS):
        for _ in range(accumulation):
            batch = joined([next(loader) for loader in loaders])
            loss = contrastive_loss(LossConfig(), model(batch), [len(batch)], alone)
            (loss / accumulation).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.engine.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def engine_losses(world: World, config: RunConfig, engines: list[EngineConfig]) -> list[list[float]]:
    """Losses of this rank, scaled so that ranks average to the whole batch's, for each engine in turn."""
    results = []
    for engine_config in engines:
        model = make_model(config)
        engine = Engine(engine_config, model, make_optimizer(config.optimizer, model), world)
        ranks = [world.rank] if world.size == SHARES else [0, 1]
        loaders, losses = make_loaders(config, ranks), []
        for _ in range(STEPS):
            for _ in range(engine_config.accumulation):
                batch = joined([next(loader) for loader in loaders])
                counts = world.counts(len(batch))
                loss = contrastive_loss(LossConfig(), engine.forward(batch), counts, world)
                engine.backward(loss)
                losses.append(loss.item())
            engine.step(LEARNING_RATE)
        results.append(losses)
    return results


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_zero_stage_takes_the_plain_steps(tmp_path: Path, ranks: int):
    config = small_run(tmp_path)
    engines = [EngineConfig(zero_stage=stage, precision="fp32") for stage in range(4)]
    engines.append(EngineConfig(zero_stage=2, precision="fp32", accumulation=2))
    expected = torch.tensor(plain_losses(config))
    assert expected[-1] < 0.9 * expected[0], "the reference must learn, or agreement means little"
    by_rank = on_ranks(ranks, engine_losses, config, engines)
    for index, engine in enumerate(engines):
        found = torch.stack([torch.tensor(losses[index]) for losses in by_rank]).mean(dim=0)
        if engine.accumulation > 1:
            expected = torch.tensor(plain_losses(config, engine.accumulation))
        error = ((found - expected).abs() / expected).max()
        assert error < 1e-5, engine


def test_bf16_stays_near_fp32(tmp_path: Path):
    config = small_run(tmp_path)
    engines = [EngineConfig(zero_stage=stage, precision="bf16") for stage in (0, 3)]
    for losses in on_ranks(1, engine_losses, config, engines)[0]:
        torch.testing.assert_close(
            torch.tensor(losses), torch.tensor(plain_losses(config)), rtol=2e-2, atol=0
        )


def evaluation_dtypes(world: World, config: RunConfig) -> list[torch.dtype]:
    """What the model that is evaluated computes in, at stages where it is the trained one and a copy."""
    dtypes = []
    for stage in (0, 3):
        model = make_model(config)
        engine = EngineConfig(zero_stage=stage, precision="bf16")
        whole = Engine(engine, model, make_optimizer(config.optimizer, model), world).whole_model()
        dtypes.append(whole.compute_dtype)
    return dtypes


def test_evaluation_computes_as_training_does(tmp_path: Path):
    # The attention backend was chosen for that precision, and kernels of half precision take no other.
    assert on_ranks(1, evaluation_dtypes, small_run(tmp_path)) == [[torch.bfloat16] * 2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"zero_stage": 4}, "zero_stage: expected 0, 1, 2 or 3, found 4"),
        ({"accumulation": 0}, "accumulation: expected at least 1, found 0"),
        ({"gradient_clipping": -1.0}, r"gradient_clipping: expected at least 0, found -1\.0"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**setting)
