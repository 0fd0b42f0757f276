"""What a run says about itself: a log line, a row in metrics.jsonl, TensorBoard, a progress bar.

Numbers are gathered on the device and read on log steps alone, so that ordinary steps need no sync.
"""

from __future__ import annotations

import json
import logging
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from navit_clip.batch import Batch
from navit_clip.data import TrainLoader
from navit_clip.data.counts import total_by_source, total_counts
from navit_clip.distributed import World
from navit_clip.json_lines import read_json_lines
from training.checkpoint import Progress
from training.config import RunConfig
from training.gradient import Contrast
from training.utilisation import model_flops, peak_flops

logger = logging.getLogger("navit_clip")
LOG_FORMAT = logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", "%Y-%m-%d,%H:%M:%S")

Moment = Any
"""Seconds of the host's clock, or an event of a GPU's."""

MOST_OFF = 0.05
"""Share by which `data.images_per_epoch` may miss what an epoch has."""


class Meter:
    """Sums over the steps between two log lines, of this rank."""

    def __init__(self, config: RunConfig, world: World):
        self._config = config
        self._world = world
        self._peak = peak_flops(world.device, config.engine.compute_dtype)
        self._reset()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data, but for what the device still computed then."""
        start = _now(self._world.device)
        yield
        self._waits.append((start, _now(self._world.device)))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of every rate: what is not training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    @property
    def has_steps(self) -> bool:
        """Whether there is a step to tell of: one that was not skipped."""
        return self._steps > 0

    def add(self, batches: Sequence[Batch], contrast: Contrast, applied: bool) -> None:
        """Counts a step's batches, on the host, and what the loss made of them, unless it was skipped."""
        if not applied:
            self._skipped += 1
            return
        self._steps += 1
        self._batches += len(batches)
        for batch in batches:
            self._pairs += len(batch)
            self._squared_pairs += len(batch) ** 2
            self._image_tokens += batch.images.num_tokens
            self._whole_tokens += int(batch.images.grid.prod(dim=1).sum())
            self._text_tokens += batch.captions.num_tokens
            self._longest_wait = max(self._longest_wait, batch.longest_wait)
            self._flops += model_flops(self._config.model, self._config.optimizer, batch)
        self._loss = self._loss + contrast.loss
        self._scale_and_bias = torch.cat([contrast.logit_scale, contrast.logit_bias])

    def row(self) -> dict[str, float]:
        """Means over all ranks, t and b as they are now, since the last call; all ranks call it together."""
        seconds = time.perf_counter() - self._start
        own = [self._batches, self._pairs, self._squared_pairs, self._image_tokens, self._whole_tokens]
        waited = sum(_seconds_between(start, end) for start, end in self._waits)
        own += [self._text_tokens, self._flops, waited, seconds, float(self._loss) / self._steps]
        totals = self._world.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        batches, pairs, squared_pairs, image_tokens, whole_tokens, *totals = totals
        text_tokens, flops, waited, rank_seconds, loss = totals
        variance = max(squared_pairs / batches - (pairs / batches) ** 2, 0.0)
        longest_wait = max(self._world.gather_objects(self._longest_wait))
        logit_scale, logit_bias = self._scale_and_bias.tolist()
        skipped, memory = self._skipped, max(self._world.gather_objects(_memory(self._world.device)))
        self._reset()
        return {
            "loss": loss / self._world.size,
            "logit_scale": logit_scale,
            "logit_bias": logit_bias,
            "skipped_steps": skipped,
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": (image_tokens + text_tokens) / seconds,
            "seconds_per_batch": rank_seconds / batches,
            "data_wait": waited / rank_seconds,
            "flops_utilisation": flops / (rank_seconds * self._peak),
            "memory_gib": memory,
            "fill": image_tokens / (batches * self._config.data.tokens_per_batch),
            "images_per_batch": pairs / batches,
            "text_tokens_per_batch": text_tokens / batches,
            "images_per_batch_spread": variance**0.5 / (pairs / batches),
            "drop_rate": 1 - image_tokens / whole_tokens,
            "packing_wait": longest_wait,
        }

    def _reset(self) -> None:
        self._steps = self._skipped = 0
        self._batches = self._pairs = self._squared_pairs = 0
        self._image_tokens = self._whole_tokens = self._text_tokens = self._longest_wait = 0
        self._flops = 0.0
        self._waits: list[tuple[Moment, Moment]] = []
        self._loss: torch.Tensor | float = 0.0
        self._start = time.perf_counter()


def _now(device: torch.device) -> Moment:
    """On a GPU, when it is done with all that it was given so far."""
    if device.type != "cuda":
        return time.perf_counter()
    moment = torch.cuda.Event(enable_timing=True)
    moment.record(torch.cuda.current_stream(device))
    return moment


def _seconds_between(start: Moment, end: Moment) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _memory(device: torch.device) -> float:
    """The most that this rank has held so far, in GiB: of its GPU, or of the host where it runs there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def samples_row(loader: TrainLoader, world: World) -> dict[str, Any]:
    """What became of the samples so far, on all ranks, which call it together: in all, and by source.

    `samples_per_epoch` is what `data.images_per_epoch` should say: good and bad ones, by as much of the
    data as has been read.
    """
    ranks = world.gather_objects(loader.source_counts)
    epoch = sum(world.gather_objects(loader.epoch)) / world.size
    sources = dict(zip(ranks[0], total_by_source([list(rank.values()) for rank in ranks]), strict=True))
    total = total_counts(sources.values())
    return {
        "samples_read": total["read"],
        "samples_used": total["used"],
        "samples_skipped": sum(total["skipped"].values()),
        "samples_per_epoch": total["read"] / epoch,
        "sources": sources,
    }


class Recorder:
    """Writes a run's rows where people look for them; on ranks other than the main one, nowhere.

    Rows of steps after `progress`, left by a run that was stopped after its last checkpoint, are taken out,
    and so are one that was cut off and the scores at a run's end, which is then evaluated again.
    """

    def __init__(self, run: Path, progress: Progress, config: RunConfig, world: World):
        self._is_main = world.is_main
        self._world = world
        self._total_pairs = config.pairs
        self._images_per_epoch = config.data.images_per_epoch
        if not self._is_main:
            return
        self._metrics = run / "metrics.jsonl"
        kept = _forget_rows_after(self._metrics, progress.step, finished=progress.pairs >= config.pairs)
        self._tensorboard = SummaryWriter(run / "tensorboard", purge_step=progress.step + 1)
        # Drawn on terminals alone; a log file has the log lines.
        self._bar = tqdm(
            total=config.pairs, initial=progress.pairs, unit="pairs", dynamic_ncols=True, disable=None
        )
        self._pairs = progress.pairs
        self._epochs = int(max((row.get("epoch", 0) for row in kept), default=0))
        self._handlers = [logging.StreamHandler(), logging.FileHandler(run / "out.log")]
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in self._handlers:
            handler.setFormatter(LOG_FORMAT)
            logger.addHandler(handler)

    def train(self, row: dict[str, Any]) -> None:
        """A row of training metrics, every `log_every` steps."""
        if self._is_main:
            self._bar.update(row["pairs"] - self._pairs)
            self._pairs = row["pairs"]
            self._write("train", row)
            self.say(train_line(row, self._total_pairs, self._world))
            self._compare_epoch(row)

    def resumed(self, progress: Progress) -> None:
        """A row where the run goes on from a checkpoint; the curves have a mark there."""
        if self._is_main:
            at = {"step": progress.step, "pairs": progress.pairs, "ranks": self._world.size}
            self._append({"kind": "resumed", **at})

    def score(self, kind: str, row: dict[str, Any]) -> None:
        """A validation or evaluation result."""
        if self._is_main:
            self._write(kind, row)
            scores = ", ".join(f"{name} {_short(value)}" for name, value in _numbers(row).items())
            self.say(": ".join([kind, *(row[name] for name in ("dataset", "task") if name in row), scores]))

    def say(self, message: str) -> None:
        """A line for the console, above the progress bar, and for out.log."""
        if self._is_main:
            with logging_redirect_tqdm([logger]):
                logger.info(message)

    def close(self) -> None:
        if self._is_main:
            self._bar.close()
            self._tensorboard.close()
            for handler in self._handlers:
                logger.removeHandler(handler)
                handler.close()

    def _compare_epoch(self, row: dict[str, Any]) -> None:
        """After each epoch, whether it had as many images as the schedules count with."""
        epochs, self._epochs = self._epochs, int(row["epoch"])
        planned, found = self._images_per_epoch, row["samples_per_epoch"]
        if self._epochs > epochs and planned and abs(found - planned) > MOST_OFF * planned:
            self.say(
                f"data.images_per_epoch: expected about {found:.0f}, as many as an epoch had, found "
                f"{planned}: schedules over images seen count {planned / found:.2g} for each"
            )

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self._append({"kind": kind, **row})
        for name, value in _numbers(row).items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, row["step"])

    def _append(self, row: dict[str, Any]) -> None:
        with self._metrics.open("a") as file:
            file.write(_line(row))


def train_line(row: dict[str, Any], total_pairs: int, world: World) -> str:
    """open_clip's log line, with what packing adds."""
    rate, device = row["pairs_per_second"], "gpu" if world.device.type == "cuda" else world.device.type
    share = min(row["pairs"] / total_pairs, 1.0)  # the last batch may hold more than was left
    return (
        f"Train Epoch: {int(row['epoch'])} "
        f"[{row['pairs']:>{len(str(total_pairs))}}/{total_pairs} ({100 * share:.0f}%)] "
        f"Data (t): {row['data_wait'] * row['seconds_per_batch']:.3f} "
        f"Batch (t): {row['seconds_per_batch']:.3f}, {rate:#.3g}/s, {rate / world.size:#.3g}/s/{device} "
        f"LR: {row['learning_rate']:.6f} "
        f"Logit Scale: {row['logit_scale']:.3f} Logit Bias: {row['logit_bias']:.3f} "
        f"Gradient Norm: {row['gradient_norm']:.3f} "
        f"MFU: {100 * row['flops_utilisation']:.1f}% Memory: {row['memory_gib']:.1f}GiB "
        f"Fill: {100 * row['fill']:.1f}% Images: {row['images_per_batch']:.1f} "
        f"Loss: {row['loss']:.5g}"
    )


def _short(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _numbers(row: dict[str, Any]) -> dict[str, int | float]:
    flat = {**row, **row.get("metrics", {})}
    return {name: value for name, value in flat.items() if isinstance(value, int | float)}


def _forget_rows_after(metrics: Path, step: int, finished: bool) -> list[dict[str, Any]]:
    """Returns the rows that stay."""
    if not metrics.exists():
        return []
    kept = [
        row
        for row in read_json_lines(metrics)
        if row["step"] < step
        or (row["step"] == step and (row["kind"] in ("train", "resumed") or not finished))
    ]
    text = "".join(_line(row) for row in kept)
    if text.encode() != metrics.read_bytes():
        partial = metrics.with_name(f".{metrics.name}.partial")
        partial.write_text(text)
        partial.replace(metrics)
    return kept


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
