"""Weak scaling by the model of `navit-clip plan`: docs/pictures/weak-scaling.svg and two tables.

    python -m benchmarks.scaling_curves

H100s, ZeRO 1, bf16, captions of 16 tokens. Every setting has to fit by the same model. Efficiency is a step
of 8 ranks over a step of so many, without waiting for the slowest rank. The second table has 1024 GPUs with
other adapters.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib

from navit_clip.config import load_config
from training.config import RunConfig
from training.plan.command import utilisation
from training.plan.hardware import GIB, GPUS, NETWORK_REACHED, Hardware
from training.plan.memory import memory_of
from training.plan.step_time import step_time
from training.plan.workload import Workload, draw_lengths, typical_sizes, workload_of

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "weak-scaling"
from matplotlib import pyplot as plt  # noqa: E402

ROOT = Path(__file__).parent.parent
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SHOWN = (8, 64, 512, 1024, 4096)
PARTS = ("towers", "loss", "exchange", "optimizer", "hosts")
CAPTION_TOKENS = 16


class Setting(NamedTuple):
    """A line of the picture."""

    name: str
    model: str
    side: int | None
    """Pixels of all images, none dropped; without one, the b16 run's own draws and drops."""
    tokens: int
    """Of images, a rank and step."""
    checkpoints: bool = False
    """Of the image tower's blocks."""
    products: str = "fp32"
    """Of the loss."""


SETTINGS = (
    Setting("B/16, sides 64-256, half dropped", "b16", None, 65536),
    Setting("B/16, the same, loss in TF32", "b16", None, 65536, products="tf32"),
    Setting("L/16, sides 64-256, half dropped", "l16", None, 57344),
    Setting("L/16, the same, loss in TF32", "l16", None, 57344, products="tf32"),
    Setting("L/16, 384 px", "l16", 384, 65536),
    Setting("So400m/16, 384 px", "so400m16", 384, 57344),
    Setting("So400m/16, 384 px, checkpoints", "so400m16", 384, 131072, checkpoints=True),
    Setting("So400m/16, 512 px, checkpoints", "so400m16", 512, 131072, checkpoints=True),
)
ADAPTERS = (50e9, 25e9, 12.5e9)
"""Bytes a second and GPU, by the sheet."""


def main() -> None:
    arguments = _parser().parse_args()
    gpu = GPUS["h100"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    print("| setting | tokens | pairs | memory | " + " | ".join(f"{ranks} GPUs" for ranks in SHOWN) + " |")
    print("|---" * (4 + len(SHOWN)) + "|")
    for setting in SETTINGS:
        config, workload = planned(setting)
        memory = memory_of(config, workload, min(RANKS)).peak  # more ranks need less
        assert memory <= gpu.memory, f"{setting.name} does not fit"
        times = {ranks: step_time(config, workload, ranks, gpu) for ranks in RANKS}
        left.plot(RANKS, [times[8].total / times[ranks].total for ranks in RANKS], label=setting.name)
        cells = [
            f"{times[8].total / times[ranks].total:.0%} (MFU {utilisation(times[ranks], gpu):.0%})"
            for ranks in SHOWN
        ]
        about = f"{setting.tokens:,} | {workload.pairs:.0f} | {memory / GIB:.0f} GiB"
        print(f"| {setting.name} | {about} | {' | '.join(cells)} |")
    print_networks(gpu)
    config, workload = planned(SETTINGS[0])
    first = {ranks: step_time(config, workload, ranks, gpu) for ranks in SHOWN}
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


def print_networks(gpu: Hardware) -> None:
    """Efficiency at 1024 GPUs by what a GPU's adapter is."""
    names = [f"{adapter / 1e9:g} GB/s" for adapter in ADAPTERS]
    print(f"\n| setting | {' | '.join(names)} |\n{'|---' * (1 + len(names))}|")
    for setting in SETTINGS:
        config, workload = planned(setting)
        cells = []
        for adapter in ADAPTERS:
            other = replace(gpu, network_rate=NETWORK_REACHED * adapter)
            node, many = (step_time(config, workload, ranks, other).total for ranks in (8, 1024))
            cells.append(f"{node / many:.0%}")
        print(f"| {setting.name} | {' | '.join(cells)} |")


def planned(setting: Setting) -> tuple[RunConfig, Workload]:
    """The run, and what a rank's batch of it holds."""
    overrides = ["data.shards=[SHARDS]", f"model.from={ROOT}/configs/model/{setting.model}.yaml"]
    overrides += [f"data.tokens_per_batch={setting.tokens}"]
    overrides += [f"model.image.checkpoint_blocks={str(setting.checkpoints).lower()}"]
    overrides += [f"loss.products={setting.products}"]
    if setting.side:
        overrides += [f"data.resolution.{end}_side={setting.side}" for end in ("min", "max")]
        overrides += ["data.drop.rate=0.0"]
    config = load_config(RunConfig, ROOT / "configs/run/b16.yaml", overrides)
    lengths = draw_lengths(config, typical_sizes())
    return config, workload_of(config, lengths, setting.tokens, CAPTION_TOKENS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Draws weak scaling by the model of `navit-clip plan`.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures/weak-scaling.svg")
    return parser


if __name__ == "__main__":
    main()
