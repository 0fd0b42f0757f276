"""The training loop, top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from navit_clip.data import TrainLoader
from navit_clip.distributed import World
from navit_clip.errors import DivergenceError
from training.checkpoint import CheckpointWriter, Progress
from training.config import RunConfig
from training.engine import Engine
from training.feed import Feed
from training.gradient import accumulate_gradient
from training.metrics import Meter, Recorder, samples_row
from training.schedule import learning_rate_share
from training.stop import StopRequest


class End(NamedTuple):
    """How a run came to its end."""

    progress: Progress
    stopped: bool
    """Asked to, before it had seen all its pairs and was evaluated."""


def train(
    config: RunConfig,
    engine: Engine,
    loader: TrainLoader,
    checkpoints: CheckpointWriter,
    recorder: Recorder,
    evaluate: Callable[[Progress], None],
    stop: StopRequest,
    progress: Progress,
    world: World,
) -> End:
    """Trains from `progress` until the run has seen all its pairs or is asked to stop.

    Args:
        config: the run.
        engine: the model and its optimizer.
        loader: this rank's batches, already at `progress`.
        checkpoints: saves the run on the way and at its end.
        recorder: takes the metrics.
        evaluate: judges the model as it is after a step and records the scores; all ranks call it.
        stop: whether to save and leave; what comes while a step's end is awaited is heeded after the next.
        progress: where to start.
        world: the ranks.

    Raises:
        DataError: a rank's samples are bad beyond the config's patience, or it cannot read them.
        DivergenceError: too many steps in a row had a gradient that is not finite.
    """
    step, pairs, skipped = progress.step, progress.pairs, progress.skipped
    if stop.asked(world):
        recorder.say(f"asked to stop: leaving after step {step}, with nothing new to save")
        return End(progress, stopped=True)
    if pairs >= config.pairs:  # resumed at its end: the evaluation that it was perhaps killed in
        evaluate(progress)
        return End(progress, stopped=stop.asked(world))
    meter = Meter(config, world)
    feed = Feed(loader, config.engine.accumulation, stop, world)
    with meter.waiting():
        feed.fetch()

    while pairs < config.pairs:
        share = learning_rate_share(config.schedule, pairs, config.pairs)
        learning_rate = config.optimizer.learning_rate * share
        on_host, on_device, counts = feed.take()
        step += 1
        pairs += sum(counts)

        contrast = accumulate_gradient(engine, on_device, counts, config.loss, world)
        if pairs < config.pairs:
            with meter.waiting():
                feed.fetch()  # for the next step: a GPU has yet to compute what was launched for this one
        applied = engine.step(learning_rate)

        skipped = 0 if applied else skipped + 1
        progress = Progress(step, pairs, skipped)
        meter.add(on_host, contrast, applied)
        if not applied:
            recorder.say(f"step {step}: the gradient is not finite; skipped on all ranks, {skipped} in a row")
        if skipped >= config.engine.max_skipped_steps:
            raise DivergenceError(
                f"step {step}: expected a finite gradient, found none in {skipped} steps in a row; the last "
                f"whole checkpoint is {checkpoints.last_whole()}: go on from it with a lower "
                "optimizer.learning_rate or a longer schedule.warmup_pairs"
            )

        finished = pairs >= config.pairs
        stopped = not finished and feed.stopped()
        saves = finished or stopped or step % config.checkpoint.every == 0
        evaluates = finished or is_due(config.evaluate_every, step, pairs, config.pairs)

        if (saves or step % config.log_every == 0) and meter.has_steps:
            at = {"step": step, "pairs": pairs, "epoch": loader.epoch, "learning_rate": learning_rate}
            row = {**at, "gradient_norm": engine.gradient_norm(), **meter.row(), **samples_row(loader, world)}
            recorder.train(row)

        if saves:
            with meter.paused():
                checkpoints.save(progress, engine, loader.state())

        if stopped:
            recorder.say(f"asked to stop: leaving after step {step}")
            return End(progress, stopped=True)

        if evaluates:
            with meter.paused():
                evaluate(progress)

    return End(progress, stopped=stop.asked(world))


def is_due(every: int, step: int, pairs: int, total_pairs: int) -> bool:
    """Whether a step is an `every`th, and so far from the end that what the end does should not stand for it.

    Steps have pairs as they come; the rest of the run is taken to have as many a step as the run had so far.
    """
    steps_left = (total_pairs - pairs) * step / pairs
    return every > 0 and step % every == 0 and steps_left >= every / 2
