"""Log lines and metrics files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from navit_clip.batch import Batch
from navit_clip.distributed import World
from navit_clip.errors import DataError
from navit_clip.json_lines import read_json_lines
from tests.packs import noise_captions, noise_images, pack, pack_captions
from tests.training_builders import small_run
from training.checkpoint import Progress
from training.gradient import Contrast
from training.metrics import Meter, Recorder, train_line

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
ROW = {
    "step": 3,
    "pairs": 512,
    "epoch": 1.25,
    "learning_rate": 1e-3,
    "gradient_norm": 2.5,
    "loss": 3.14159,
    "logit_scale": 10.5,
    "logit_bias": -9.5,
    "pairs_per_second": 1234.5,
    "tokens_per_second": 9e4,
    "seconds_per_batch": 0.5,
    "data_wait": 0.1,
    "flops_utilisation": 0.4567,
    "memory_gib": 1.25,
    "skipped_steps": 0,
    "samples_per_epoch": 1000.0,
    "fill": 0.995,
    "images_per_batch": 51.2,
}


def test_the_log_line_is_one_that_open_clip_users_know():
    two_gpus = World(rank=0, size=2, device=torch.device("cuda", 0))
    assert train_line(ROW, total_pairs=2048, world=two_gpus) == (
        "Train Epoch: 1 [ 512/2048 (25%)] Data (t): 0.050 Batch (t): 0.500, 1.23e+03/s, 617./s/gpu "
        "LR: 0.001000 Logit Scale: 10.500 Logit Bias: -9.500 Gradient Norm: 2.500 "
        "MFU: 45.7% Memory: 1.2GiB Fill: 99.5% Images: 51.2 Loss: 3.1416"
    )


def test_a_last_batch_beyond_the_end_is_counted_and_the_share_is_whole():
    line = train_line({**ROW, "pairs": 151}, total_pairs=150, world=ALONE)
    assert "[151/150 (100%)]" in line
    assert "/s/cpu LR" in line


def contrast(loss: float) -> Contrast:
    return Contrast(torch.tensor(loss), torch.tensor([10.0]), torch.tensor([-9.0]))


def test_a_meter_counts_what_passed_and_starts_anew(tmp_path: Path):
    batch = Batch(
        pack(noise_images([(2, 3), (1, 4)], 2)),
        pack_captions(noise_captions([3, 5], 10)),
        keys=("a", "b"),
        longest_wait=3,
    )
    config = small_run(tmp_path, data={"shards": ["x.tar"], "tokens_per_batch": 1024})
    meter = Meter(config, ALONE)
    for loss in (2.0, 4.0):
        with meter.waiting():
            pass
        meter.add([batch, batch], contrast(loss), applied=True)
    meter.add([batch, batch], contrast(math.nan), applied=False)
    row = meter.row()
    assert row["loss"] == 3.0
    assert row["fill"] == 10 / 1024
    assert row["images_per_batch"] == 2
    assert row["text_tokens_per_batch"] == 8
    assert row["packing_wait"] == 3
    assert row["images_per_batch_spread"] == 0
    assert row["drop_rate"] == 0
    assert row["tokens_per_second"] / row["pairs_per_second"] == pytest.approx((10 + 8) / 2)
    assert (row["logit_scale"], row["logit_bias"]) == (10.0, -9.0)
    assert row["skipped_steps"] == 1
    assert 0 <= row["data_wait"] <= 1
    assert row["flops_utilisation"] > 0
    assert row["memory_gib"] > 0
    assert not meter.has_steps
    meter.add([batch], contrast(8.0), applied=True)
    assert meter.row()["loss"] == 8.0


def test_what_is_not_training_is_in_no_rate(monkeypatch, tmp_path: Path):
    meter = Meter(small_run(tmp_path), ALONE)
    clock = iter([0.0, 10.0, 17.0, 20.0, 20.0])  # start, pause, its end, row, start anew
    monkeypatch.setattr("training.metrics.time.perf_counter", lambda: next(clock))
    meter._reset()
    batch = Batch(pack(noise_images([(1, 1)], 2)), pack_captions([[1]]), keys=("a",))
    meter.add([batch], contrast(1.0), applied=True)
    with meter.paused():
        pass
    assert meter.row()["seconds_per_batch"] == 13.0


def test_rows_after_the_checkpoint_are_forgotten(tmp_path: Path):
    for start, steps in ((0, range(1, 6)), (3, range(4, 8))):
        recorder = Recorder(tmp_path, Progress(step=start, pairs=0), small_run(tmp_path), ALONE)
        for step in steps:
            recorder.train({**ROW, "step": step, "pairs": 10 * step + start})
        recorder.score("validation", {"step": steps[-1], "pairs": 0, "loss": 1.0})
        recorder.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["pairs"] for row in rows if row["kind"] == "train"] == [10, 20, 30, 43, 53, 63, 73]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [7]
    assert (tmp_path / "out.log").read_text().count("Train Epoch") == 9


@pytest.mark.parametrize("broken", ['{"kind": "train", "st', "\0\0\0\n", "{half\n"])
def test_a_row_that_a_kill_or_a_power_cut_broke_is_forgotten(tmp_path: Path, broken: str):
    whole = json.dumps({"kind": "train", "step": 1})
    (tmp_path / "metrics.jsonl").write_text(f"{whole}\n{broken}")
    Recorder(tmp_path, Progress(step=1, pairs=0), small_run(tmp_path), ALONE).close()
    assert (tmp_path / "metrics.jsonl").read_text() == f"{whole}\n"


def test_a_row_that_is_broken_amid_others_is_an_error_and_stays(tmp_path: Path):
    rows = '{"kind": "train", "step": 1}\n{"kind": "tr\n{"kind": "train", "step": 3}\n'
    (tmp_path / "metrics.jsonl").write_text(rows)
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: expected a JSON object, found '\{\"kind"):
        Recorder(tmp_path, Progress(step=3, pairs=0), small_run(tmp_path), ALONE)
    assert (tmp_path / "metrics.jsonl").read_text() == rows


def test_a_row_says_where_the_run_was_resumed(tmp_path: Path):
    for start, stop in ((0, 4), (2, 3), (2, 6), (6, 6)):  # killed after step 3, and again at once
        progress = Progress(step=start, pairs=10 * start)
        recorder = Recorder(tmp_path, progress, small_run(tmp_path), ALONE)
        if start:
            recorder.resumed(progress)
        for step in range(start + 1, stop + 1):
            recorder.train({**ROW, "step": step, "pairs": 10 * step})
        recorder.close()
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 2, 2, 3, 4, 5, 6, 6]
    resumed = [row for row in rows if row["kind"] == "resumed"]
    assert resumed[0] == {"kind": "resumed", "step": 2, "pairs": 20, "ranks": 1}


@pytest.mark.parametrize(
    ("planned", "said"), [(0, 0), (953, 0), (1052, 0), (952, 2), (1053, 2), (250, 2), (4000, 2)]
)
def test_an_epoch_is_compared_with_what_schedules_count(tmp_path: Path, planned, said):
    """Once an epoch, and only where there is a schedule."""
    schedule = {"drop": {"schedule": {"midpoint_images": 9, "timescale_images": 3}}} if planned else {}
    config = small_run(tmp_path, data={"shards": ["x.tar"], "images_per_epoch": planned, **schedule})
    recorder = Recorder(tmp_path, Progress(step=0, pairs=0), config, ALONE)
    for step, epoch in enumerate((0.4, 0.9, 1.1, 1.6, 2.0, 2.3)):
        recorder.train({**ROW, "step": step, "epoch": epoch})
        if step == 3:  # stopped and resumed in the second epoch
            recorder.close()
            recorder = Recorder(tmp_path, Progress(step=step, pairs=0), config, ALONE)
    recorder.close()
    lines = [line for line in (tmp_path / "out.log").read_text().splitlines() if "images_per_epoch" in line]
    assert len(lines) == said
    for line in lines:
        assert line.endswith(
            f"data.images_per_epoch: expected about 1000, as many as an epoch had, found {planned}: "
            f"schedules over images seen count {planned / 1000:.2g} for each"
        )
