"""Weak scaling by the model of `navit-clip plan`: docs/pictures/weak-scaling.svg and a table.

    python -m benchmarks.scaling_curves

Every rank has 65,536 image tokens of the b16 run a batch, at other sizes and models where it says so; H100s,
ZeRO 1, bf16. Efficiency is a step of 8 ranks over a step of so many, without waiting for the slowest rank.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib

from navit_clip.config import load_config
from training.config import RunConfig
from training.plan.command import utilisation
from training.plan.hardware import GPUS
from training.plan.step_time import StepTime, step_time
from training.plan.workload import draw_lengths, typical_sizes, workload_of

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "weak-scaling"
from matplotlib import pyplot as plt  # noqa: E402

ROOT = Path(__file__).parent.parent
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SHOWN = (8, 64, 512, 1024, 4096)
PARTS = ("towers", "loss", "exchange", "optimizer")
CAPTION_TOKENS = 16


class Setting(NamedTuple):
    """A line of the picture."""

    name: str
    model: str
    side: int | None
    """Pixels of all images, none dropped; without one, the b16 run's own draws and drops."""


SETTINGS = (
    Setting("B/16, sides 64-256, half dropped", "b16", None),
    Setting("L/16, sides 64-256, half dropped", "l16", None),
    Setting("L/16, 384 px", "l16", 384),
    Setting("So400m/16, 384 px", "so400m16", 384),
)


def main() -> None:
    arguments = _parser().parse_args()
    gpu = GPUS["h100"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    print("| setting | pairs a rank | " + " | ".join(f"{ranks} GPUs" for ranks in SHOWN) + " |")
    print("|---" * (2 + len(SHOWN)) + "|")
    for setting in SETTINGS:
        times, pairs = steps(setting)
        left.plot(RANKS, [times[8].total / times[ranks].total for ranks in RANKS], label=setting.name)
        cells = [
            f"{times[8].total / times[ranks].total:.0%} (MFU {utilisation(times[ranks], gpu):.0%})"
            for ranks in SHOWN
        ]
        print(f"| {setting.name} | {pairs:.0f} | {' | '.join(cells)} |")
    first, _ = steps(SETTINGS[0])
    bottom = [0.0] * len(SHOWN)
    for part in PARTS:
        heights = [getattr(first[ranks], part) for ranks in SHOWN]
        right.bar([str(ranks) for ranks in SHOWN], heights, bottom=bottom, label=part)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    left.axhline(0.9, color="gray", linewidth=0.8, linestyle=":")
    left.set(
        xscale="log", xlabel="H100s", ylabel="efficiency", ylim=(0, 1.05), title="Weak scaling, modelled"
    )
    left.set_xticks(SHOWN, [str(ranks) for ranks in SHOWN])
    left.minorticks_off()
    left.legend(fontsize="small", loc="lower left")
    right.set(xlabel="H100s", ylabel="seconds a step", title=SETTINGS[0].name)
    right.legend(fontsize="small")
    figure.savefig(arguments.out, metadata={"Date": None})


def steps(setting: Setting) -> tuple[dict[int, StepTime], float]:
    """A step's time by number of ranks, and pairs of a rank's batch."""
    overrides = ["data.shards=[SHARDS]", f"model.from={ROOT}/configs/model/{setting.model}.yaml"]
    if setting.side:
        overrides += [f"data.resolution.{end}_side={setting.side}" for end in ("min", "max")]
        overrides += ["data.drop.rate=0.0"]
    config = load_config(RunConfig, ROOT / "configs/run/b16.yaml", overrides)
    lengths = draw_lengths(config, typical_sizes())
    workload = workload_of(config, lengths, config.data.tokens_per_batch, CAPTION_TOKENS)
    return {ranks: step_time(config, workload, ranks, GPUS["h100"]) for ranks in RANKS}, workload.pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draws weak scaling by the model of `navit-clip plan`.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures/weak-scaling.svg")
    return parser


if __name__ == "__main__":
    main()
