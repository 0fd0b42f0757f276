"""The training loop, top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from navit_clip.data import TrainLoader
from navit_clip.data.transport import Transfer
from navit_clip.distributed import World
from navit_clip.errors import DivergenceError
from navit_clip.loss import contrastive_loss
from navit_clip.tokenizer import Tokenizer
from training.checkpoint import Progress, save_checkpoint
from training.config import RunConfig
from training.engine import Engine
from training.metrics import Meter, Recorder, samples_row
from training.schedule import learning_rate_share


def train(
    config: RunConfig,
    engine: Engine,
    loader: TrainLoader,
    tokenizer: Tokenizer,
    recorder: Recorder,
    evaluate: Callable[[Progress], None],
    progress: Progress,
    world: World,
) -> Progress:
    """Trains from `progress` until the run has seen all its pairs; saves and evaluates on the way.

    Args:
        config: the run.
        engine: the model and its optimizer.
        loader: this rank's batches, already at `progress`.
        tokenizer: goes into checkpoints with the model.
        recorder: takes the metrics.
        evaluate: judges the model as it is after a step and records the scores; all ranks call it.
        progress: where to start.
        world: the ranks.

    Returns:
        Where the run ended.
    """
    step, pairs = progress.step, progress.pairs
    if pairs >= config.pairs:  # resumed at its end: the evaluation that it was perhaps killed in
        evaluate(progress)
        return progress
    meter = Meter(world, config.data.tokens_per_batch)
    batches, transfer = iter(loader), Transfer(world.device)

    while pairs < config.pairs:
        learning_rate = config.optimizer.learning_rate * learning_rate_share(
            config.schedule, pairs, config.pairs
        )
        for _ in range(config.engine.accumulation):
            with meter.waiting():
                batch = next(batches)
            counts = world.counts(len(batch))
            embeddings = engine.forward(transfer(batch))
            loss = contrastive_loss(config.loss, embeddings, counts, world)
            engine.backward(loss)
            meter.add(batch, embeddings, loss)
            pairs += sum(counts)
        engine.step(learning_rate)
        step += 1
        finished = pairs >= config.pairs
        saves = finished or step % config.checkpoint.every == 0
        evaluates = finished or (config.evaluate_every > 0 and step % config.evaluate_every == 0)

        if saves or step % config.log_every == 0:
            row = {
                "step": step,
                "pairs": pairs,
                "epoch": loader.epoch,
                "learning_rate": learning_rate,
                "gradient_norm": engine.gradient_norm(),
                **meter.row(),
                **samples_row(loader, world),
            }
            recorder.train(row)
            check_finite(row)

        if saves:
            with meter.paused():
                folder = save_checkpoint(
                    Path(config.folder),
                    Progress(step, pairs),
                    engine,
                    tokenizer,
                    loader.state(),
                    world,
                    config.checkpoint.keep,
                )
            recorder.say(f"saved {folder}")

        if evaluates:
            with meter.paused():
                evaluate(Progress(step, pairs))

    return Progress(step, pairs)


def check_finite(row: dict[str, Any]) -> None:
    """Stops a run that has left the numbers, before a checkpoint of it can replace a good one.

    Raises:
        DivergenceError: the loss or the gradient is not finite.
    """
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(row[name]):
            raise DivergenceError(
                f"step {row['step']}: expected a finite {name}, found {row[name]}; go on from the last "
                "checkpoint with a lower optimizer.learning_rate or a longer schedule.warmup_pairs"
            )
