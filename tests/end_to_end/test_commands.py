"""The commands in the order that a user runs them, in processes of their own, on shards made here.

Where nothing else depends on it, a process has what it imports from the one that it is forked from.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from navit_clip.cli import main
from navit_clip.config import save_config
from navit_clip.data.order import BlockOrder
from tests.data_builders import encode_image, noise_picture, pair, write_shard, write_tar
from tests.ranks import exit_codes
from tests.training_builders import small_run


class Done(NamedTuple):
    """What became of a command: the exit codes of its ranks, and what they wrote."""

    codes: list[int | None]
    stdout: str
    stderr: str


def typed(*words: object, ranks: int = 1) -> Done:
    """A command as from a shell, by torchrun where there are several ranks."""
    command = [sys.executable, "-m", "navit_clip.cli"]
    if ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={port}"]
        command = [sys.executable, "-m", *launcher, "-m", "navit_clip.cli"]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True)
    return Done([done.returncode], done.stdout, done.stderr)


def forked(*words: object, ranks: int = 1) -> Done:
    """The same without a shell and a launcher, and without the seconds that Python takes to import."""
    with TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        codes = exit_codes(ranks, write_to, files, list(map(str, words)))
        return Done(codes, *(Path(file).read_text() for file in files))


def write_to(files: list[str], words: list[str]) -> int:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    return main(words)


def succeeds(*words: object, run: Callable[..., Done] = forked, ranks: int = 1) -> str:
    done = run(*words, ranks=ranks)
    assert set(done.codes) == {0}, done.stderr
    return done.stdout + done.stderr


def fails(*words: object, run: Callable[..., Done] = forked) -> str:
    """What a command says when its input cannot be used: one line on stderr, exit code 2, no traceback."""
    done = run(*words)
    assert done.codes == [2], (done.codes, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of two ranks under ZeRO-2, with a tokenizer from its own captions."""
    folder = tmp_path_factory.mktemp("user")
    config = small_run(
        folder,
        validation={"data": {"shards": [str(folder / "shards" / "*-001.tar")], "side": 32}, "group": 16},
        evaluate_every=3,
        evaluation={
            "tokens_per_image": 16,
            "num_workers": 0,
            "tasks": [{"dataset": str(folder / "shards"), "task": "zeroshot_retrieval"}],
        },
    )
    save_config(config, folder / "run.yaml")
    tokenizer = folder / "trained-tokenizer"
    succeeds("tokenizer", "train", folder / "shards", tokenizer, "--vocab-size", 512, run=typed)
    settings = [f"tokenizer={tokenizer}", "data.num_workers=1", "engine.zero_stage=2"]
    succeeds("train", folder / "run.yaml", *settings, run=typed, ranks=2)
    return folder / "run"


def test_training_leaves_metrics_of_every_kind(run: Path):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("train", "validation", "eval")}
    assert [row["step"] for row in by_kind["train"]] == list(range(1, len(by_kind["train"]) + 1))
    assert by_kind["train"][-1]["loss"] < by_kind["train"][0]["loss"]
    assert by_kind["validation"][-1]["loss"] < by_kind["validation"][0]["loss"]
    assert set(by_kind["eval"][-1]["metrics"]) >= {"image_retrieval_recall@1", "text_retrieval_recall@10"}


def test_the_resolved_config_runs_again_as_it_is(run: Path, tmp_path: Path):
    said = succeeds("train", run / "config.yaml", f"folder={tmp_path / 'again'}", "pairs=20")
    assert "saved " in said


def test_resume_goes_on_at_the_latest_checkpoint(run: Path):
    said = succeeds("train", run / "config.yaml", "--resume", "latest", "pairs=200", ranks=2)
    assert f"from {run / 'checkpoints' / 'step-'}" in said


def test_eval_writes_clip_benchmark_s_schema(run: Path, tmp_path: Path):
    shards = run.parent / "shards" / "*.tar"
    output = tmp_path / "{task}.json"
    for task in ("zeroshot_retrieval", "zeroshot_classification"):
        names = tmp_path / "names.txt"
        names.write_text("\n".join(f"number {digit}" for digit in range(10)))
        extra = ["--custom_classname_file", names] if task == "zeroshot_classification" else []
        words = ["eval", "--model", run, "--dataset", shards, "--task", task, *extra]
        said = succeeds(*words, "--num_workers", 0, "--output", output)
        result = json.loads((tmp_path / f"{task}.json").read_text())
        assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(result)
        assert result["num_samples"] == 60
        assert "chance" in said


def test_export_and_report_of_the_run(run: Path, tmp_path: Path):
    said = succeeds("export", run, tmp_path / "exported", "--tokens-per-image", 16)
    assert (tmp_path / "exported" / "model.safetensors").exists(), said
    succeeds("report", run, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_bad_shards_are_counted_and_the_run_goes_on(tmp_path: Path):
    config = small_run(tmp_path)
    shards = tmp_path / "shards"
    bad = [pair(f"bad{number}", number) for number in range(4)]
    bad[0]["png"] = encode_image(noise_picture(40, 40))[:200]
    bad[1]["png"] = b"no image at all"
    bad[2]["txt"] = "  \n"
    del bad[3]["txt"]
    write_shard(shards / "bad.tar", bad)
    (shards / "cut.tar").write_bytes((shards / "shard-000.tar").read_bytes()[:100_000])
    save_config(config, tmp_path / "run.yaml")
    good, cut, broken = (f"{shards}/{name}.tar" for name in ("shard-*", "cut", "bad"))
    sources = f"data.shards=[{good},{cut},{broken}]"
    said = succeeds("train", tmp_path / "run.yaml", "pairs=250", "data.num_workers=2", sources)
    lines = said.splitlines()
    (total,) = (line for line in lines if " samples up to the last batch: " in line)
    for cause in ("undecodable image", "empty caption", "no caption", "truncated shard"):
        assert cause in total
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = [row for row in rows if "sources" in row][-1]["sources"]
    assert list(counts) == [good, cut, broken]
    assert "truncated shard" in counts[cut]["skipped"]
    assert "truncated shard" not in {**counts[good]["skipped"], **counts[broken]["skipped"]}
    assert counts[broken]["used"] == 0 < counts[good]["used"]
    for source, of_source in counts.items():
        (line,) = (line for line in lines if f"samples of {source} up to the last batch: " in line)
        assert f"{of_source['used']} used" in line
        assert all(cause in line for cause in of_source["skipped"])


@pytest.mark.parametrize(
    ("limits", "good", "error"),
    [
        (["data.max_consecutive_faults=30"], 30, "error: rank 1: 30 bad samples in a row; 30 skipped: "),
        (["data.max_faults=20"], 30, "error: rank 1: data.max_faults reached: 20 skipped: "),
        ([], 0, "every sample of the shards is bad; "),
        ([], 1, None),
    ],
)
def test_a_rank_whose_samples_are_bad_ends_all_with_one_error_or_goes_on(
    tmp_path: Path, limits: list[str], good: int, error: str | None
):
    """Of two shards that are dealt whole, rank 1 begins with the bad one."""
    config = small_run(tmp_path, pairs=12)
    save_config(config, tmp_path / "run.yaml")
    (shards := tmp_path / "some").mkdir()
    write_shard(shards / "bad.tar", [{"__key__": str(n), "jpg": b"bad", "txt": "a"} for n in range(40)])
    write_shard(shards / "good.tar", [pair(f"good{n}", n) for n in range(good)])
    order = BlockOrder(num_shards=2, blocks_per_shard=1, seed=config.seed)
    assert [order.shard(position) for position in range(4)] == [1, 0, 1, 0], "the bad one is number 0"
    words = ["train", tmp_path / "run.yaml", f"data.shards=[{shards}]", "data.blocks_per_shard=1"]
    done = forked(*words, *limits, ranks=2)
    assert "Traceback" not in done.stderr
    if error is None:
        assert done.codes == [0, 0], done.stderr
        return
    assert done.codes == [2, 2], done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert len(set(errors)) == 1, "of all ranks alike"
    assert error in errors[0]
    assert "undecodable image" in errors[0]
    assert "0 read" not in done.stdout + done.stderr


def test_input_that_cannot_be_used_is_one_clear_line(tmp_path: Path):
    config = small_run(tmp_path)
    save_config(config, tmp_path / "run.yaml")
    file = tmp_path / "run.yaml"
    none = f"data.shards=[{tmp_path}/none-*.tar]"
    assert "data.shards: no shard matches" in fails("train", file, none, run=typed)
    assert fails("train").endswith("required: config\n")
    assert "unknown key data.shard; did you mean shards?" in fails("train", file, "data.shard=x")
    assert "flash_attn is asked for and not installed" in fails("train", file, "attention=flash_attn")
    assert "no such config file" in fails("train", tmp_path / "none.yaml")
    assert "no command 'trian'; did you mean train?" in fails("trian")
    assert "expected a run, a checkpoint or a model folder" in fails(
        "export", tmp_path / "none", tmp_path / "x"
    )

    write_tar(tmp_path / "bad.tar", [(f"{number}.jpg", b"nothing") for number in range(5)])
    said = fails("train", file, f"data.shards=[{tmp_path}/bad.tar]", f"folder={tmp_path / 'bad'}")
    assert "no caption" in said


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX exit codes")
def test_help_of_every_command():
    for command in ("train", "eval", "export", "tokenizer", "report"):
        done = forked(command, "--help")
        assert done.codes == [0], done.stderr
        assert f"navit-clip {command}" in done.stdout
