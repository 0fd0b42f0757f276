"""The commands in the order that a user runs them, in processes of their own, on shards made here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from navit_clip.config import save_config
from tests.data_builders import encode_image, noise_picture, pair, write_shard, write_tar
from tests.training_builders import small_run


def navit_clip(*words: object, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "navit_clip.cli"]
    if ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={port}"]
        command = [sys.executable, "-m", *launcher, "-m", "navit_clip.cli"]
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True)


def succeeds(*words: object, ranks: int = 1) -> str:
    done = navit_clip(*words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def fails(*words: object) -> str:
    """What a command says when its input cannot be used: one line on stderr, exit code 2, no traceback."""
    done = navit_clip(*words)
    assert done.returncode == 2, (done.returncode, done.stderr)
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
    succeeds("tokenizer", "train", folder / "shards", tokenizer, "--vocab-size", 512)
    settings = [f"tokenizer={tokenizer}", "data.num_workers=1", "engine.zero_stage=2"]
    succeeds("train", folder / "run.yaml", *settings, ranks=2)
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
    (total,) = (line for line in lines if " samples: " in line)
    for cause in ("undecodable image", "empty caption", "no caption", "truncated shard"):
        assert cause in total
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = [row for row in rows if "sources" in row][-1]["sources"]
    assert list(counts) == [good, cut, broken]
    assert "truncated shard" in counts[cut]["skipped"]
    assert "truncated shard" not in {**counts[good]["skipped"], **counts[broken]["skipped"]}
    assert counts[broken]["used"] == 0 < counts[good]["used"]
    for source, of_source in counts.items():
        (line,) = (line for line in lines if f"samples of {source}: " in line)
        assert f"{of_source['used']} used" in line
        assert all(cause in line for cause in of_source["skipped"])


def test_input_that_cannot_be_used_is_one_clear_line(tmp_path: Path):
    config = small_run(tmp_path)
    save_config(config, tmp_path / "run.yaml")
    file = tmp_path / "run.yaml"
    assert "data.shards: no shard matches" in fails("train", file, f"data.shards=[{tmp_path}/none-*.tar]")
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
    environment = {**os.environ, "COLUMNS": "100"}
    for command in ("train", "eval", "export", "tokenizer", "report"):
        done = subprocess.run(
            [sys.executable, "-m", "navit_clip.cli", command, "--help"],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert f"navit-clip {command}" in done.stdout
