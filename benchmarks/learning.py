"""Whether it learns: small towers trained from nothing on two cores, scored on held-out samples.

    python benchmarks/learning.py --data FOLDER
    python benchmarks/learning.py --data FOLDER --only tuxpaint --seeds 0 1 2 --json learning.json

FOLDER holds the train and test shards that the recipes in benchmarks/learning/ name. For each recipe and
seed, in processes of its own: `navit-clip tokenizer train` on the train shard's captions, then
`navit-clip train`, whose evaluation at the end gives the score. Out come a table of medians beside chance,
and the time that each run took.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from navit_clip.config import load_config
from training.config import RunConfig

RECIPES = Path(__file__).parent / "learning"

SCORES = {
    "imagenette": ("acc1",),
    "tuxpaint": ("text_retrieval_recall@10", "image_retrieval_recall@10"),
    "caltech101": ("acc1",),
    "flickr8k": ("text_retrieval_recall@10", "image_retrieval_recall@10"),
}
"""Recipe -> what is reported of its evaluation; text retrieval finds captions for an image."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run."""

    recipe: str
    seed: int
    scores: dict[str, float]
    """Shares between 0 and 1, of the model as training left it."""
    chance: dict[str, float]
    wall_seconds: float
    """Tokenizer, training, evaluation and the start of Python."""
    cpu_seconds: float
    """The same, summed over processes and threads."""


def main() -> None:
    arguments = _parser().parse_args()
    os.environ["NAVIT_CLIP_DATA"] = str(arguments.data.resolve())
    outcomes = []
    for recipe in arguments.only:
        for seed in arguments.seeds:
            outcomes.append(run(recipe, seed))
            print(_line(outcomes[-1]), flush=True)
    print("\n" + table(outcomes))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


def run(recipe: str, seed: int) -> Outcome:
    """Trains a tokenizer and a model by a recipe, in a folder that is gone afterwards."""
    path = RECIPES / f"{recipe}.yaml"
    folder = Path(tempfile.mkdtemp(prefix=f"{recipe}-"))
    overrides = [f"folder={folder}", f"seed={seed}"]
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    try:
        _navit_clip("tokenizer", "train", *_tokenizer_arguments(load_config(RunConfig, path, overrides)))
        _navit_clip("train", str(path), *overrides)
        row = _last_evaluation(folder / "metrics.jsonl")
    finally:
        shutil.rmtree(folder)
    return Outcome(
        recipe=recipe,
        seed=seed,
        scores={name: row["metrics"][name] for name in SCORES[recipe]},
        chance={name: row["chance"][name] for name in SCORES[recipe]},
        wall_seconds=time.perf_counter() - start,
        cpu_seconds=_cpu_seconds() - cpu_start,
    )


def table(outcomes: list[Outcome]) -> str:
    """One row for each score, in Markdown."""
    lines = [
        "| recipe | score | seeds | median | chance | CPU time | wall time |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in dict.fromkeys(outcome.recipe for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.recipe == recipe]
        cpu = statistics.median(outcome.cpu_seconds for outcome in runs)
        wall = statistics.median(outcome.wall_seconds for outcome in runs)
        for name in SCORES[recipe]:
            scores = [100 * outcome.scores[name] for outcome in runs]
            lines.append(
                f"| {recipe} | {name} | {', '.join(f'{score:.1f}' for score in scores)} "
                f"| {statistics.median(scores):.1f} % | {100 * runs[0].chance[name]:.1f} % "
                f"| {cpu:.0f} s | {wall:.0f} s |"
            )
    return "\n".join(lines)


def _tokenizer_arguments(config: RunConfig) -> list[str]:
    """The tokenizer of a recipe is trained on what its model will read."""
    templates = [f"--template={template}" for template in config.data.templates]
    size = f"--vocab-size={config.model.text.vocab_size}"
    return [
        *config.data.shards,
        config.tokenizer,
        size,
        f"--caption-key={config.data.caption_key}",
        *templates,
    ]


def _navit_clip(*arguments: str) -> None:
    """Runs a command quietly; what it said is shown where it fails."""
    command = [sys.executable, "-m", "navit_clip.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(command)}: ended with {done.returncode}")


def _last_evaluation(metrics: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"][-1]


def _cpu_seconds() -> float:
    """Of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _line(outcome: Outcome) -> str:
    scores = ", ".join(f"{name} {100 * score:.1f} %" for name, score in outcome.scores.items())
    return (
        f"{outcome.recipe}, seed {outcome.seed}: {scores} "
        f"({outcome.cpu_seconds:.0f} s of CPU, {outcome.wall_seconds:.0f} s)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--only", nargs="+", choices=list(SCORES), default=list(SCORES), help="recipes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="file to write, with every run in it")
    return parser


if __name__ == "__main__":
    main()
