"""The commands of docs/launching.md on CPUs: real launchers, one node, and two that meet on loopback."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from navit_clip.config import save_config
from navit_clip.weights import resolve_model_folder
from tests.training_builders import small_run
from training.checkpoint import CheckpointConfig
from training.config import RunConfig

pytestmark = pytest.mark.slow
SECONDS = 600
BESIDE_PYTHON = Path(sys.executable).parent


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    path = f"{BESIDE_PYTHON}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu"}
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def write(config: RunConfig, folder: Path) -> str:
    save_config(config, folder / "run.yaml")
    return str(folder / "run.yaml")


def torchrun(run: str, *where: str) -> list[str]:
    meeting = ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    return ["torchrun", *where, *meeting, "-m", "training.train", run, "--resume", "auto"]


def deepspeed(run: str, *where: str) -> list[str]:
    return ["deepspeed", *where, "--module", "training.train", run, "--resume", "auto"]


def nodes(launcher: str, run: str, folder: Path) -> list[list[str]]:
    """What is typed on each node."""
    meeting = ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    if launcher == "torchrun":
        where = ["--nnodes", "2", "--nproc_per_node", "1", *meeting]
        rest = ["-m", "training.train", run, "--resume", "auto"]
        return [["torchrun", *where, "--node_rank", str(node), *rest] for node in range(2)]
    (folder / "hosts").write_text("node-a slots=1\nnode-b slots=1\n")
    where = ["--hostfile", str(folder / "hosts"), "--no_ssh", *meeting]
    return [deepspeed(run, *where, "--node_rank", str(node)) for node in range(2)]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_nodes_train_one_run(tmp_path: Path, launcher: str):
    config = small_run(tmp_path, pairs=60)
    commands = nodes(launcher, write(config, tmp_path), tmp_path)
    logs = [tmp_path / f"{node}.log" for node in range(2)]
    launchers = [start(command, log) for command, log in zip(commands, logs, strict=True)]
    for process, log in zip(launchers, logs, strict=True):
        assert process.wait(SECONDS) == 0, log.read_text()
    assert "on 2 x cpu, 2 a node" in (Path(config.folder) / "out.log").read_text()
    assert resolve_model_folder(config.folder).is_dir()


def test_deepspeed_starts_the_ranks_of_one_node(tmp_path: Path):
    config = small_run(tmp_path, pairs=60)
    command = deepspeed(write(config, tmp_path), "--num_gpus", "2", "--master_port", free_port())
    log = tmp_path / "log"
    assert start(command, log).wait(SECONDS) == 0, log.read_text()
    assert "on 2 x cpu, 2 a node" in (Path(config.folder) / "out.log").read_text()


def test_a_launcher_that_gets_sigterm_leaves_a_run_that_goes_on_exactly(tmp_path: Path):
    base = replace(small_run(tmp_path, pairs=3000), checkpoint=CheckpointConfig(every=10_000))
    whole, stopped = (replace(base, folder=str(tmp_path / name)) for name in ("whole", "stopped"))
    for config in (whole, stopped):
        Path(config.folder).mkdir()
        command = torchrun(write(config, Path(config.folder)), "--nproc_per_node", "2")
        process = start(command, tmp_path / "log")
        out = Path(config.folder) / "out.log"
        if config is stopped:
            while not out.exists() or out.read_text().count("Train Epoch") < 5:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) != 0
            assert "asked to stop: leaving after step" in out.read_text()
            process = start(torchrun(command[-3], "--nproc_per_node", "2"), tmp_path / "log")
        assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    weights = [load_file(resolve_model_folder(run.folder) / "model.safetensors") for run in (whole, stopped)]
    assert all(weight.equal(weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_is_one_line_a_rank(tmp_path: Path, ranks: int):
    run = write(small_run(tmp_path, pairs=1_000_000), tmp_path)
    alone = [sys.executable, "-m", "training.train", run]
    process = start(alone if ranks == 1 else torchrun(run, "--nproc_per_node", "2"), tmp_path / "log")
    out = tmp_path / "run" / "out.log"
    while not out.exists() or out.read_text().count("Train Epoch") < 5:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and its ranks
    code, said = process.wait(SECONDS), (tmp_path / "log").read_text().splitlines()
    assert said.count("interrupted") == ranks
    assert not [line for line in said if "training/" in line and "File" in line]
    assert code == 130 if ranks == 1 else code != 0


def test_a_planned_stop_under_torchrun_can_be_told_by_the_log(root: Path, tmp_path: Path):
    """The lines of docs/launching.md, as they stand there."""
    config = small_run(tmp_path, pairs=1_000_000)
    page = (root / "docs" / "launching.md").read_text()
    lines = page[page.index("    stops() {") :].split("\n\n")[0]
    lines = lines.replace("RUN.yaml", write(config, tmp_path)).replace("RUN/", f"{config.folder}/")
    lines = lines.replace("--nproc_per_node 8", f"--nproc_per_node 2 --master_port {free_port()}")
    process = start(["bash", "-c", lines], tmp_path / "log")
    out = Path(config.folder) / "out.log"
    while not out.exists() or out.read_text().count("Train Epoch") < 5:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    newest = ["pgrep", "--newest", "--full", str(tmp_path / "run.yaml")]  # a rank: torchrun starts them last
    rank = subprocess.run(newest, capture_output=True, text=True, check=True).stdout
    os.kill(int(rank), signal.SIGUSR1)
    assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert re.search(r"exitcode *: 75", said), said
    assert said.endswith("stopped and saved: start it again\n")
    assert resolve_model_folder(config.folder).is_dir()
