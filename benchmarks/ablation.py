"""NaViT's parts, one after the other, at equal training compute: table and plot.

    python benchmarks/ablation.py --data FOLDER --out runs/ablation
    python benchmarks/ablation.py --data FOLDER --out runs/ablation --only vit navit --seeds 0 1 2

FOLDER holds the shards that benchmarks/ablation/base.yaml names. A variant is a file beside it that says how
it differs. All variants train for as many pairs as `--operations` pay for: matrix products and attention of
both towers, forward and backward, counted (navit_clip/model/flops.py) on the lengths that the variant's own
draws give to images of the real sizes. The model is then scored at resolutions seen and unseen.

Runs go one after the other, seed by seed, in this process. What has finished is in OUT/results.jsonl and is
not run again; a run that was killed goes on from its checkpoint. Table and plot are of what has finished.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from bisect import bisect_left
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
import torch

from eval.model import PackedModel
from eval.tasks import evaluate
from navit_clip.config import load_config
from navit_clip.data import read_samples
from navit_clip.data.drawn import draw_size
from navit_clip.data.draws import draw_text
from navit_clip.data.images import EncodedImage
from navit_clip.distributed import World
from navit_clip.model.flops import image_tower_flops, text_tower_flops
from navit_clip.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from navit_clip.weights import load_model
from training.config import RunConfig
from training.train import run_training

VARIANTS = Path(__file__).parent / "ablation"
ORDER = ("vit", "navit", "navit-beta", "navit-falling", "learned-2d", "absolute")
CURVES = ("vit", "navit", "navit-beta", "navit-falling")
POSITIONS = ("vit", "navit", "learned-2d", "absolute")
TOKENS = (9, 16, 36, 64, 144)
"""Patches an image is scored at: sides of 24, 32, 48, 64 and 96 pixels."""
SEEN = 36
"""The most that any variant trains with."""
SCORINGS = 5
"""How often a run is scored on its way."""
STEP = 1000
"""Pairs over which operations are counted as one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run."""

    variant: str
    seed: int
    pairs: int
    tokens_per_image: float
    """Mean of the image tokens that were trained on."""
    operations: list[float]
    """Floating-point operations done when the run was scored on its way."""
    curve: list[float]
    """Top-1 at `SEEN` tokens then."""
    scores: dict[str, float]
    """Top-1 of the finished model, by the number of tokens an image is scored at."""


class Course:
    """How a variant's operations add up over its pairs.

    Args:
        config: the variant.
        tokenizer: of its captions.
        operations: what the run may cost.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, operations: float):
        self._config = config
        self._tokenizer = tokenizer
        self._random = np.random.default_rng(0)
        self._costs, self._tokens = [0.0], 0.0
        while self._costs[-1] < operations:
            cost, tokens = self._of_step(len(self._costs) - 1)
            self._costs.append(self._costs[-1] + cost)
            self._tokens += tokens
        self.tokens_per_image = self._tokens / (STEP * (len(self._costs) - 1))
        self.pairs = round(self._pairs_at(operations))

    def operations_at(self, pairs: float) -> float:
        """Operations done after so many pairs."""
        return float(np.interp(pairs, np.arange(len(self._costs)) * STEP, self._costs))

    def _pairs_at(self, operations: float) -> float:
        step = bisect_left(self._costs, operations) - 1
        share = (operations - self._costs[step]) / (self._costs[step + 1] - self._costs[step])
        return (step + share) * STEP

    @cached_property
    def _samples(self) -> list[tuple[int, int, tuple[str, ...]]]:
        data = self._config.data
        samples = read_samples(data.shards, data.caption_key)
        opened = [(EncodedImage(sample.image), sample.captions) for sample in samples]
        return [(image.height, image.width, captions) for image, captions in opened]

    def _of_step(self, step: int) -> tuple[float, float]:
        """Operations and image tokens of as many pairs, by draws like those of training."""
        data, model, random = self._config.data, self._config.model, self._random
        patch_size, seen = model.image.patch_size, (step + 0.5) * STEP
        lengths, texts = [], []
        samples = self._samples
        for height, width, captions in (samples[i % len(samples)] for i in range(STEP)):
            texts.append(draw_text(captions, (), tuple(data.templates), random)[1])
            lengths.append(draw_size(data, random, seen, height, width, patch_size).num_kept)
        encoded = self._tokenizer.encode(texts, model.text.context_length)
        image = image_tower_flops(model.image, torch.tensor(lengths), backward=True)
        captions = torch.tensor([len(ids) for ids in encoded])
        text = text_tower_flops(model.text, model.image.width, captions, backward=True)
        return image + text, float(sum(lengths))


def main() -> None:
    """Runs what is missing, and writes table and plot after each run."""
    arguments = _parser().parse_args()
    os.environ["NAVIT_CLIP_DATA"] = str(arguments.data.resolve())
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    with World.join() as world:
        for seed in arguments.seeds:
            for variant in arguments.only:
                done = read(results)
                if (variant, seed) in [(outcome.variant, outcome.seed) for outcome in done]:
                    continue
                outcome = run(variant, seed, arguments.operations, arguments.out, world)
                with results.open("a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
                write(arguments.out, [*done, outcome])
    write(arguments.out, read(results))
    print((arguments.out / "table.md").read_text())


def run(variant: str, seed: int, operations: float, out: Path, world: World) -> Outcome:
    """Trains and scores a variant; goes on where an earlier call was killed."""
    folder, tokenizer_folder = out / f"{variant}-{seed}", out / "tokenizer"
    base = [f"folder={folder}", f"tokenizer={tokenizer_folder}", f"seed={seed}"]
    config = load_config(RunConfig, VARIANTS / f"{variant}.yaml", [*base, "pairs=1"])
    if not tokenizer_folder.exists():
        captions = [
            template.replace("{}", caption)
            for sample in read_samples(config.data.shards, config.data.caption_key)
            for caption in sample.captions
            for template in config.data.templates
        ]
        train_tokenizer(captions, config.model.text.vocab_size).save(tokenizer_folder)
    course = Course(config, load_tokenizer(str(tokenizer_folder)), operations)
    steps = course.pairs * course.tokens_per_image / config.data.tokens_per_batch
    length = [
        f"pairs={course.pairs}",
        f"schedule.warmup_pairs={course.pairs // 20}",
        f"evaluate_every={max(1, round(steps / SCORINGS))}",
    ]
    config = load_config(RunConfig, VARIANTS / f"{variant}.yaml", [*base, *length])
    latest = folder / "checkpoints" / "latest"
    run_training(config, world, resume="latest" if latest.exists() else None)

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = {row["pairs"]: row["metrics"]["acc1"] for row in rows if row["kind"] == "eval"}
    judged = PackedModel(*load_model(folder / "checkpoints" / latest.read_text().strip() / "model"))
    scores = {}
    for tokens in TOKENS:
        evaluation = replace(config.evaluation, tokens_per_image=tokens)
        (result,) = evaluate(judged, evaluation, world)
        scores[str(tokens)] = result.metrics["acc1"]
    return Outcome(
        variant=variant,
        seed=seed,
        pairs=course.pairs,
        tokens_per_image=course.tokens_per_image,
        operations=[course.operations_at(pairs) for pairs in scored],
        curve=list(scored.values()),
        scores=scores,
    )


def read(results: Path) -> list[Outcome]:
    """What has finished."""
    lines = results.read_text().splitlines() if results.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def write(out: Path, outcomes: list[Outcome]) -> None:
    """Table and plot of what has finished."""
    (out / "table.md").write_text(table(outcomes))
    plot(outcomes, out / "ablation.svg")


def table(outcomes: list[Outcome]) -> str:
    """A row for each variant, in Markdown: means over seeds, and their standard deviations."""
    lines = [
        "| variant | seeds | pairs | tokens an image | top-1 at 36 tokens | mean over 9 to 144 | best "
        "| share of the compute to the baseline's final score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    baseline = [outcome for outcome in outcomes if outcome.variant == "vit"]
    for variant in ORDER:
        runs = [outcome for outcome in outcomes if outcome.variant == variant]
        if not runs:
            continue
        at_seen = spread([run.scores[str(SEEN)] for run in runs])
        average = spread([statistics.mean(run.scores.values()) for run in runs])
        best = spread([max(run.scores.values()) for run in runs])
        lines.append(
            f"| {variant} | {len(runs)} | {runs[0].pairs} | {runs[0].tokens_per_image:.1f} | {at_seen} "
            f"| {average} | {best} | {reaching(runs, baseline)} |"
        )
    return "\n".join(lines) + "\n"


def spread(shares: list[float]) -> str:
    """Mean and standard deviation in per cent."""
    deviation = f" ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * statistics.mean(shares):.1f}{deviation}"


def reaching(runs: list[Outcome], baseline: list[Outcome]) -> str:
    """The share of the operations at which the mean curve first has the baseline's final score."""
    if not baseline or runs == baseline:
        return ""
    goal = statistics.mean(outcome.curve[-1] for outcome in baseline)
    shares, scores = mean_curve(runs)
    reached = np.flatnonzero(scores >= goal)
    return f"{100 * shares[reached[0]]:.0f} %" if len(reached) else "not reached"


def mean_curve(runs: list[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Shares of all operations, and the mean score of the runs there."""
    shares = np.linspace(1 / SCORINGS, 1, 81)
    curves = [np.interp(shares * run.operations[-1], run.operations, run.curve) for run in runs]
    return shares, np.mean(curves, axis=0)


def plot(outcomes: list[Outcome], path: Path) -> None:
    """Scores over compute for the parts, and over resolution for the positions."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (over_compute, over_tokens) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for variant in ORDER:
        runs = [outcome for outcome in outcomes if outcome.variant == variant]
        if runs and variant in CURVES:
            shares, scores = mean_curve(runs)
            over_compute.plot(shares * runs[0].operations[-1] / 1e12, 100 * scores, label=variant)
        if runs and variant in POSITIONS:
            means = [100 * statistics.mean(run.scores[str(tokens)] for run in runs) for tokens in TOKENS]
            over_tokens.plot([tokens**0.5 * 8 for tokens in TOKENS], means, marker="o", label=variant)
    over_compute.set(xlabel="operations in training / 10¹²", ylabel=f"top-1 at {SEEN} tokens, %")
    over_tokens.set(xlabel="side at evaluation, pixels", ylabel="top-1, %")
    over_tokens.axvspan(24, 48, alpha=0.1, color="gray", label="sides that NaViT trains with")
    for axes in (over_compute, over_tokens):
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, results, table and plot")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=list(ORDER), help="variants")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--operations", type=float, default=1.2e12, help="that each run may cost")
    return parser


if __name__ == "__main__":
    main()
