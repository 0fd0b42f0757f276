"""benchmarks/gpu.sh runs to its end where there is no GPU, at a size that shows nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

ABSENT = ("deepspeed", "webdataset", "beartype")

STEPS_AND_LOADER = """
import sys
from pathlib import Path
import torch
from benchmarks.gpu import training_step
from benchmarks.gpu.overlap import overlap_rows
from benchmarks.gpu.rows import write_rows
from navit_clip.distributed import World

packed_step = training_step.packed_step

def first_has_no_room(*arguments):
    training_step.packed_step = packed_step
    raise torch.OutOfMemoryError("CUDA out of memory.\\nTried to allocate 2 GiB.")

training_step.packed_step = first_has_no_room
folder = Path(sys.argv[1])
with World.join() as world:
    assert write_rows(folder / "steps.json", training_step.step_rows("tiny", world)) == 1
    assert write_rows(folder / "overlap.json", overlap_rows("tiny", world)) == 0
"""


def surroundings(*path) -> dict[str, str]:
    """Those of a process on a machine without a GPU that imports from these folders first."""
    dry = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **dry, "PYTHONPATH": ":".join(map(str, path))}


def test_parts_that_lack_a_package_say_so_and_the_others_run(root, tmp_path):
    """As on a machine where nothing can be installed."""
    absent, found = tmp_path / "absent", tmp_path / "found"
    for folder in (absent, found):
        folder.mkdir()
    (absent / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n")
    others = found / "mine.json"
    others.write_text("[]")
    run = subprocess.run(
        [root / "benchmarks/gpu.sh", "found"],
        env=surroundings(absent),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    output = run.stdout + run.stderr + "".join(path.read_text() for path in sorted(found.glob("*.log")))
    assert run.stdout.endswith("failed: tests step-tiny overlap\n"), output
    assert run.returncode == 1
    rows = re.findall(r"^\| ([\w-]+) \| (.*) \| (.*) \|$", run.stdout, re.M)
    lines = {part: [(what, result) for name, what, result in rows if name == part] for part, *_ in rows[1:]}
    for part in ("step-tiny", "overlap"):
        assert lines[part] == [
            ("exit code 1", "ModuleNotFoundError: import of deepspeed halted; None in sys.modules")
        ]
    # Those of the tests that need neither are collected, shapes unchecked, and skipped for want of a GPU.
    assert re.fullmatch(r"\d+ skipped, \d+ deselected,.* [12] errors? in .*", lines["tests"][0][1])
    for part in ("kernels", "peers-compiled"):
        names = [row["name"] for row in json.loads((found / f"{part}.json").read_text())]
        assert [what for what, _ in lines[part]] == names
    assert {"sdpa, b16's draws", "matrix product"} < {what for what, _ in lines["kernels"]}
    assert {"packed", "packed compiled"} < {what for what, _ in lines["peers-compiled"]}
    assert others.exists()


def test_a_step_without_room_takes_neither_the_others_along_nor_the_loader(root, tmp_path):
    command = [sys.executable, "-c", STEPS_AND_LOADER, tmp_path]
    subprocess.run(command, env=surroundings(root), check=True)
    plain, checkpoints, compiled = json.loads((tmp_path / "steps.json").read_text())
    assert plain == {"name": "tiny, plain", "failed": "OutOfMemoryError: CUDA out of memory."}
    for row in (checkpoints, compiled):
        assert 0 < row["flops_utilisation"] < 1
    assert compiled["graphs"] > 0
    assert compiled["recompilations"] == 0
    (overlap,) = json.loads((tmp_path / "overlap.json").read_text())
    assert 0 <= overlap["data_wait"] < 1
    assert overlap["steps"] >= 4, "the first steps take what was ready before them"
