"""A run at small sizes with dropping, and a stage at larger ones without that starts from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from navit_clip.weights import load_model
from tests.data_builders import encode_image, noise_picture, write_shard
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.train import run_training

SHAPES = ((1, 3000), (3000, 1), (3, 2000), (40, 60), (64, 64))
FALLING = {"midpoint_images": 30, "timescale_images": -10}


def train_twice(world, stages):
    for stage in stages:
        run_training(stage, world)


def test_extreme_shapes_train_and_a_high_resolution_stage_goes_on(tmp_path: Path):
    shards = tmp_path / "odd"
    shards.mkdir()
    pictures = [encode_image(noise_picture(*shape)) for shape in SHAPES]
    samples = [{"__key__": f"x{n}", "png": pictures[n % 5], "txt": f"picture number {n}"} for n in range(30)]
    write_shard(shards / "0.tar", samples)
    data = {"shards": [str(shards)], "tokens_per_batch": 128, "lookahead": 4, "num_workers": 0}
    first = {
        **data,
        "images_per_epoch": 30,
        "resolution": {"min_side": 16, "max_side": 48, "measure": "area", "distribution": "normal"},
        "drop": {"kind": "beta", "schedule": FALLING},
        "exact_fill": True,
    }
    second = {**data, "resolution": {"min_side": 48, "max_side": 88, "upscale": False}}
    run, tuned = str(tmp_path / "run"), str(tmp_path / "tuned")
    stage = small_run(
        tmp_path,
        pairs=20,
        data=second,
        init_from={"image": run, "text": run},
        optimizer={"learning_rate": 1e-20, "weight_decay": 1e19},
    )
    stages = [small_run(tmp_path, pairs=90, data=first), replace(stage, folder=tuned)]
    on_ranks(1, train_twice, stages)
    rows = {folder: train_rows(Path(folder)) for folder in (run, tuned)}
    assert {row["fill"] for row in rows[run]} == {1.0}
    assert all(row["packing_wait"] <= 4 for row in rows[run])
    # Steps too small to be seen, so nothing has changed: the stage did start where the run had ended. Its
    # decay, a tenth a step, would be seen: of weights from elsewhere there is none.
    before, after = (load_model(model_of(Path(folder))).model.state_dict() for folder in (run, tuned))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-15, rtol=0, msg=name)


def train_rows(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def model_of(run: Path) -> Path:
    checkpoints = run / "checkpoints"
    return checkpoints / (checkpoints / "latest").read_text().strip() / "model"
