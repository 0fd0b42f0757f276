"""The Slurm script, with `srun`, `scontrol` and `python` in place of the cluster's."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from navit_clip.config import load_config
from training.config import RunConfig

SRUN = """#!/usr/bin/env bash
shift  # its own option
for SLURM_PROCID in 0 1; do
    export SLURM_PROCID SLURM_LOCALID=$SLURM_PROCID SLURM_NTASKS=2
    "$@"
    task=$?
    ((task > ${code:-0})) && code=$task
done
exit "${code:-0}"  # the highest; a signal, which makes it 128 and more, before any code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*"; fi
"""
PYTHON = """#!/usr/bin/env bash
echo "rank $RANK of $WORLD_SIZE, $LOCAL_RANK there, meets at $MASTER_ADDR:$MASTER_PORT: $*"
echo "$SRUN_CPUS_PER_TASK CPUs"
kill -TERM $$; kill -USR1 $$  # before there is anybody to listen
read -ra codes <<< "$CODES"
[ "${codes[$RANK]}" = KILL ] && kill -KILL $$
exit "${codes[$RANK]}"
"""


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ("0 0", 0, False),
        ("75 75", 75, True),
        ("2 2", 2, False),
        ("75 KILL", 137, False),
        ("2 KILL", 137, False),
        ("143 75", 143, False),
    ],
)
def test_a_slurm_job_that_was_stopped_and_no_other_goes_back_into_the_queue(
    root: Path, tmp_path: Path, codes: str, code: int, requeued: bool
):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    job = {"PATH": path, "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node[7-8]", "CODES": codes}
    job["SLURM_CPUS_PER_TASK"] = "14"
    command = [str(root / "launch" / "slurm.sh"), "run.yaml", "data.shards=[a b.tar]"]
    done = subprocess.run(command, env=job, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    told = "-m training.train run.yaml data.shards=[a b.tar] --resume auto"
    assert lines[1:4:2] == ["14 CPUs"] * 2
    assert lines[0:4:2] == [f"rank {r} of 2, {r} there, meets at node7:29500: {told}" for r in range(2)]
    assert ("scontrol requeue 12" in lines) == requeued


def test_the_script_knows_the_exit_code(root: Path):
    from training.stop import STOPPED

    assert f"STOPPED={STOPPED} " in (root / "launch" / "slurm.sh").read_text()


def test_each_task_has_a_cpu_for_every_data_worker_and_for_the_rank(root: Path):
    (cpus,) = re.findall(r"^#SBATCH --cpus-per-task=(\d+)", (root / "launch" / "slurm.sh").read_text(), re.M)
    config = load_config(RunConfig, root / "configs" / "run" / "b16.yaml", ['data.shards=["x.tar"]'])
    assert int(cpus) > config.data.num_workers
