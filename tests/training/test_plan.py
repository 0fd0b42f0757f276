"""A plan's arithmetic: against what autograd keeps, and where it can be said without a machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from navit_clip.cli import USAGE_ERROR
from navit_clip.cli import main as navit_clip
from navit_clip.config import load_config
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from tests.packs import noise_captions, noise_images, pack, pack_captions
from training.config import RunConfig
from training.plan.command import largest_budget
from training.plan.hardware import GPUS
from training.plan.memory import activation_bytes, count_weights, memory_of
from training.plan.step_time import loss_time, step_time
from training.plan.workload import Workload, draw_lengths, typical_sizes, workload_of

SIZE = {"width": 64, "depth": 4, "num_heads": 4, "mlp_dim": 256}
IMAGES, CAPTIONS = [(8, 8)] * 3 + [(6, 8)] * 3, [16] * 3 + [12] * 3
H100 = GPUS["h100"]


def b16(root: Path, *overrides: str) -> RunConfig:
    return load_config(RunConfig, root / "configs/run/b16.yaml", ["data.shards=[SHARDS]", *overrides])


def with_lengths(config: RunConfig, lengths: list[int], caption_tokens: int) -> Workload:
    return Workload(config.model, float(len(lengths)), torch.tensor(lengths), caption_tokens)


def workload(config: RunConfig) -> Workload:
    return workload_of(config, draw_lengths(config, typical_sizes()), config.data.tokens_per_batch, 16)


def bytes_kept(tower: torch.nn.Module, batch) -> int:
    """Of all that autograd keeps for backward, each storage once, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in tower.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = tower(batch)
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_activations_are_what_autograd_keeps(root):
    model = ClipConfig(
        image=ImageTowerConfig(**SIZE, patch_size=4, position=PositionConfig(kind="grid", table_side=8)),
        text=TextTowerConfig(**SIZE, vocab_size=50),
    )
    config = replace(b16(root, "engine.precision=fp32"), model=model)
    of = with_lengths(config, [rows * columns for rows, columns in IMAGES], sum(CAPTIONS) // len(CAPTIONS))
    towers = TwoTowers(model)
    batches = {
        "image": pack(noise_images(IMAGES, patch_size=4)),
        "text": pack_captions(noise_captions(CAPTIONS, vocab_size=50)),
    }
    for name, batch in batches.items():
        planned = activation_bytes(config, of, name, device_type="cpu")
        assert planned == pytest.approx(bytes_kept(getattr(towers, name), batch), rel=0.1), name


def test_sharding_takes_memory_away_stage_by_stage(root):
    large = b16(root, f"model.from={root}/configs/model/so400m16.yaml")
    of = workload(large)
    peaks = [
        memory_of(replace(large, engine=replace(large.engine, zero_stage=stage)), of, 64).peak
        for stage in range(4)
    ]
    assert peaks[0] > peaks[1] >= peaks[2] > peaks[3]


def test_checkpoints_and_frozen_towers_take_activations_away(root):
    config = b16(root)
    of = workload(config)
    checkpointed = b16(root, "model.image.checkpoint_blocks=true", "model.text.checkpoint_blocks=true")
    frozen = b16(root, "optimizer.image.freeze=true")
    plain = memory_of(config, of, 8)
    assert memory_of(checkpointed, of, 8).activations < 0.25 * plain.activations
    assert memory_of(frozen, of, 8).image_activations == 0
    assert count_weights(frozen)[1] == 92_648_448


def test_the_largest_budget_fits_and_the_next_does_not(root):
    config = b16(root)
    of = workload(config)
    budget = largest_budget(config, of, 8, H100)
    for tokens, fits in ((budget, True), (budget + 1024, False)):
        peak = memory_of(config, workload_of(config, of.lengths, tokens, 16), 8).peak
        assert (peak <= H100.memory) == fits


def test_checkpoints_cost_a_forward_and_accumulation_another(root):
    config = b16(root)
    of = workload(config)
    plain = step_time(config, of, 8, H100)
    checkpointed = b16(root, "model.image.checkpoint_blocks=true", "model.text.checkpoint_blocks=true")
    accumulated = b16(root, "engine.accumulation=2")
    assert step_time(checkpointed, of, 8, H100).towers == pytest.approx(4 / 3 * plain.towers)
    assert step_time(accumulated, of, 8, H100).towers == pytest.approx(2 * 4 / 3 * plain.towers)
    assert step_time(accumulated, of, 8, H100).model_flops == pytest.approx(2 * plain.model_flops)


def test_the_loss_goes_round_all_ranks():
    alone, node, many = (loss_time(1000.0, 768, ranks, H100) for ranks in (1, 8, 1024))
    assert 8 * alone <= node < many
    # Between nodes each of 1024 journeys bears captions and their gradients over one adapter.
    assert many > 1024 * 2 * 4 * 1000 * 768 / H100.network_rate


def test_a_plan_says_what_fits_and_what_does_not(root, capsys):
    config = str(root / "configs/run/b16.yaml")
    assert navit_clip(["plan", config, "--gpus", "64"]) == 0
    said = capsys.readouterr().out
    assert "64 x h100: 202.8M parameters, ZeRO 1, bf16, 65536 image tokens a batch" in said
    assert "DOES NOT FIT" not in said
    assert navit_clip(["plan", config, "data.tokens_per_batch=1000000", "--gpus", "64"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--gpus", "0"], ["--caption-tokens", "0"]])
def test_an_impossible_plan_is_named(root, capsys, wrong):
    assert navit_clip(["plan", str(root / "configs/run/b16.yaml"), *wrong]) == USAGE_ERROR
    assert f"{wrong[0]}: expected at least 1" in capsys.readouterr().err
