"""benchmarks/gpu.sh runs to its end where there is no GPU, at a size that shows nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

PARTS = ("kernels", "step-tiny", "overlap", "peers")


def test_the_script_for_gpus_runs_dry(root, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "SKIP_TESTS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [root / "benchmarks/gpu.sh", tmp_path], env=environment, capture_output=True, text=True
    )
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
    assert run.returncode == 0, run.stdout + run.stderr + logs
    found = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in PARTS}
    assert all(found.values())
    steps = {row["name"]: row for row in found["step-tiny"]}
    assert steps["tiny, checkpoints"]["activations_gib"] < steps["tiny, plain"]["activations_gib"] + 0.01
    assert all(0 < row["flops_utilisation"] < 1 for row in steps.values())
    assert 0 <= found["overlap"][0]["data_wait"] < 1
    # The table is last, and has a line for every row.
    assert len(re.findall(r"^\| (?:kernels|step-tiny|overlap|peers) \|", run.stdout, re.M)) == sum(
        map(len, found.values())
    )
