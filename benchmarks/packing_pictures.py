"""The pictures of docs/packing.md, drawn from what the project does: no curve is a formula typed in again.

    python benchmarks/packing_pictures.py

Batches are of the demo's stamps; densities are of numbers that the configs' own draws give.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from navit_clip.batch import Batch, lengths_of
from navit_clip.data import DataConfig, DropConfig, Packer, ResolutionConfig, TrainLoader
from navit_clip.data.dropping import RateSchedule, num_kept
from navit_clip.tokenizer import train_tokenizer

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
PATCH_SIZE = 16
DRAWS = 60_000
TOKENS_A_LINE = 56


def main() -> None:
    """Writes them all."""
    PICTURES.mkdir(exist_ok=True)
    pyplot.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "navit-clip"}
    )
    for name, picture in {
        "packed-batch.png": packed_batch(),
        "drop-rates.svg": drop_rates(),
        "resolutions.svg": resolutions(),
        "fill.svg": fill(),
    }.items():
        metadata = {"Date": None} if name.endswith("svg") else {"Software": None}
        picture.savefig(PICTURES / name, dpi=110, metadata=metadata)
        pyplot.close(picture)


def packed_batch() -> Figure:
    """Above, the images of one batch with what was kept of them; below, the sequence that they form."""
    batch = a_batch()
    lengths = lengths_of(batch.images.offsets)
    offsets = batch.images.offsets.tolist()
    colors = pyplot.get_cmap("tab20")(np.arange(len(batch)) % 20)
    num_lines = -(-batch.images.num_tokens // TOKENS_A_LINE)
    num_columns = 7
    num_rows = -(-len(batch) // num_columns)
    figure = pyplot.figure(figsize=(9, 1.55 * num_rows + 0.42 * num_lines), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=(1.55 * num_rows, 0.42 * num_lines))
    assert isinstance(parts, np.ndarray)
    above, below = parts
    for index, axes in enumerate(above.subplots(num_rows, num_columns).flat):
        axes.axis("off")
        if index < len(batch):
            rows, columns = batch.images.grid[index].tolist()
            axes.imshow(canvas(batch, index))
            edge = Rectangle((-0.5, -0.5), columns * PATCH_SIZE, rows * PATCH_SIZE, fill=False, lw=2)
            edge.set_edgecolor(colors[index])
            axes.add_patch(edge)
            axes.set_title(f"{index}: {rows} x {columns}, {lengths[index]} kept", fontsize=8)
    axes = below.subplots()
    axes.axis("off")
    line_height = PATCH_SIZE + 16
    strip = np.full((num_lines * line_height, TOKENS_A_LINE * PATCH_SIZE, 3), 255, dtype=np.uint8)
    for token, patch in enumerate(batch.images.patches.numpy()):
        line, place = divmod(token, TOKENS_A_LINE)
        top, left = line * line_height, place * PATCH_SIZE
        strip[top : top + PATCH_SIZE, left : left + PATCH_SIZE] = patch.reshape(PATCH_SIZE, PATCH_SIZE, 3)
    axes.imshow(strip)
    for index, (start, end) in enumerate(pairwise(offsets)):
        for line in range(start // TOKENS_A_LINE, (end - 1) // TOKENS_A_LINE + 1):
            left = max(start - line * TOKENS_A_LINE, 0) * PATCH_SIZE
            right = min(end - line * TOKENS_A_LINE, TOKENS_A_LINE) * PATCH_SIZE
            bar = Rectangle((left, line * line_height + PATCH_SIZE), right - left, 4, color=colors[index])
            axes.add_patch(bar)
        line, place = divmod(start, TOKENS_A_LINE)
        axes.text(place * PATCH_SIZE, line * line_height + PATCH_SIZE + 5, str(start), fontsize=7, va="top")
    axes.set_title(f"one sequence of {offsets[-1]} patches; numbers are the images' offsets", fontsize=8)
    return figure


def a_batch() -> Batch:
    """The first batch of a small stream of stamps, filled to the token."""
    config = DataConfig(
        shards=[str(ROOT / "demo" / "stamps-train.tar")],
        resolution=ResolutionConfig(min_side=64, max_side=160),
        drop=DropConfig(kind="beta", rate=0.4),
        tokens_per_batch=8 * TOKENS_A_LINE,
        exact_fill=True,
        num_workers=0,
    )
    return next(iter(TrainLoader(config, train_tokenizer(["a stamp"], 512), PATCH_SIZE, 64, seed=7)))


def canvas(batch: Batch, index: int) -> np.ndarray:
    """An image of a batch on its whole grid, gray where patches were dropped."""
    rows, columns = batch.images.grid[index].tolist()
    start, end = batch.images.offsets[index : index + 2].tolist()
    tiles = np.full((rows, columns, PATCH_SIZE, PATCH_SIZE, 3), 222, dtype=np.uint8)
    row, column = batch.images.position[start:end].numpy().T
    tiles[row, column] = batch.images.patches[start:end].numpy().reshape(-1, PATCH_SIZE, PATCH_SIZE, 3)
    return tiles.swapaxes(1, 2).reshape(rows * PATCH_SIZE, columns * PATCH_SIZE, 3)


def drop_rates() -> Figure:
    """Densities of drawn rates, the mean by an image's length, and schedules."""
    figure, (beta, by_length, schedule) = pyplot.subplots(1, 3, figsize=(9, 2.9), layout="constrained")
    for mean in (0.1, 0.25, 0.5, 0.7):
        density(beta, rates(DropConfig(kind="beta", rate=mean), 0.0), f"mean {mean}", np.linspace(0, 0.9, 61))
    beta.set(title="beta, max_rate 0.9", xlabel="drop rate", ylabel="density", ylim=(0, 8), xlim=(0, 0.9))
    beta.legend(frameon=False)

    lengths = np.linspace(0, 1, 60)
    for low, high in ((0.1, 0.9), (0.25, 0.75), (0.4, 0.6)):
        config = DropConfig(kind="by_length", short_rate=low, long_rate=high)
        drawn = np.array([rates(config, length, number=200) for length in lengths])
        by_length.fill_between(
            lengths, drawn.min(axis=1), drawn.max(axis=1), alpha=0.4, label=f"{low} to {high}"
        )
    by_length.set(title="by_length", xlabel="patches: fewest to most", ylabel="drop rate", ylim=(0, 1))
    by_length.set_xticks([0, 0.5, 1])
    by_length.legend(frameon=False, loc="lower right")

    seen = np.linspace(0, 100, 200)
    for label, midpoint, timescale in (("rising", 50, 10), ("falling", 50, -10), ("falling slowly", 67, -20)):
        course = RateSchedule(midpoint_images=midpoint, timescale_images=timescale)
        schedule.plot(seen, [course.rate(images) for images in seen], label=label)
    schedule.set(
        title="schedule", xlabel="images seen, % of the run", ylabel="rate, or mean rate", ylim=(0, 1.2)
    )
    schedule.set_yticks(np.linspace(0, 1, 6))
    schedule.legend(frameon=False, loc="upper left")
    return figure


def resolutions() -> Figure:
    """Densities of drawn sides."""
    figure, both = pyplot.subplots(1, 2, figsize=(9, 2.9), layout="constrained", sharey=True)
    for axes, measure in zip(both, ("side", "area"), strict=True):
        for label, settings in {
            "uniform": {},
            "normal, mean 0": {"distribution": "normal"},
            "normal, mean -0.5": {"distribution": "normal", "mean": -0.5},
            "normal, mean 0.5": {"distribution": "normal", "mean": 0.5},
        }.items():
            config = ResolutionConfig(min_side=64, max_side=384, measure=measure, **settings)
            random = np.random.default_rng(0)
            sides = np.sqrt([config.draw_tokens(random, 0.0, 1) for _ in range(DRAWS)])
            density(axes, sides, label, np.linspace(64, 385, 41))
        axes.set(title=f"measure: {measure}", xlabel="side, pixels", xlim=(64, 384), ylim=(0, 0.0075))
    both[0].set_ylabel("density")
    both[1].legend(frameon=False, loc="upper left")
    return figure


def fill() -> Figure:
    """What the packer makes of NaViT's sides and a Beta drop, batch by batch."""
    random = np.random.default_rng(0)
    resolution, drop = ResolutionConfig(min_side=64, max_side=256), DropConfig(kind="beta", rate=0.5)
    lengths = [
        num_kept(resolution.draw_tokens(random, 0.0, PATCH_SIZE), drop.draw_rate(random, 0.0, 0.0))
        for _ in range(20_000)
    ]
    figure, (filled, images) = pyplot.subplots(1, 2, figsize=(9, 2.9), layout="constrained")
    ways = {"in order of arrival": None, "lookahead 4": (4, False), "lookahead 64": (64, False)}
    for label, way in {**ways, "exact_fill": (64, True)}.items():
        batches = pack(lengths, *way) if way else in_order(lengths)
        tokens = np.array([sum(batch) for batch in batches])
        filled.plot(100 * tokens / BUDGET, lw=1.2, label=label, ls="--" if label == "exact_fill" else "-")
    filled.set(title=f"fill of {BUDGET} tokens", xlabel="batch", ylabel="%", ylim=(98.2, 100.1))
    filled.legend(frameon=False, loc="lower right", ncols=2)
    batches = pack(lengths, 64, True)
    images.plot([len(batch) for batch in batches], lw=1.2)
    images.set(title="images a batch", xlabel="batch", ylim=(0, None))
    return figure


BUDGET = 16_384


def pack(lengths: list[int], lookahead: int, exact: bool) -> list[list[int]]:
    """Lengths in each of the first 60 batches."""
    packer: Packer[int] = Packer(BUDGET, lookahead, exact)
    batches = []
    for length in lengths:
        packer.add(length, length)
        while packer.ready:
            batches.append(packer.cut().lengths)
    return batches[:60]


def in_order(lengths: list[int]) -> list[list[int]]:
    """The same where a batch ends at the first image that does not fit."""
    batches: list[list[int]] = [[]]
    for length in lengths:
        if sum(batches[-1]) + length > BUDGET:
            batches.append([])
        batches[-1].append(length)
    return batches[:60]


def rates(config: DropConfig, length: float, number: int = DRAWS) -> np.ndarray:
    """Drawn drop rates."""
    random = np.random.default_rng(0)
    return np.array([config.draw_rate(random, 0.0, length) for _ in range(number)])


def density(axes, values: np.ndarray, label: str, bins: np.ndarray) -> None:
    """The histogram's outline as a line."""
    heights, edges = np.histogram(values, bins, density=True)
    axes.plot((edges[1:] + edges[:-1]) / 2, heights, lw=1.4, label=label)


if __name__ == "__main__":
    main()
