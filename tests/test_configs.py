"""Every file under configs/ loads into its schema, and what its comment says is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from eval.task_config import EvalConfig
from navit_clip.config import load_config
from navit_clip.model import ClipConfig, TwoTowers

CONFIGS = Path(__file__).parent.parent / "configs"


def schema(kind: str) -> type:
    """The dataclass of a folder under configs/."""
    if kind == "run":
        from training.config import RunConfig  # imports DeepSpeed

        return RunConfig
    return {"model": ClipConfig, "eval": EvalConfig}[kind]


def each(pattern: str) -> list:
    return [pytest.param(path, id=str(path.relative_to(CONFIGS))) for path in sorted(CONFIGS.glob(pattern))]


@pytest.mark.parametrize("path", each("**/*.yaml"))
def test_a_config_loads_and_opens_with_its_command(path, root, monkeypatch):
    monkeypatch.chdir(root)
    own = ["data.shards=[own.tar]"] if "shards: ???" in path.read_text() else []
    load_config(schema(path.relative_to(CONFIGS).parts[0]), path, own)
    comment = path.read_text().partition("\n\n")[0]
    assert comment.startswith("# ")
    start = r"(navit-clip (?:train|eval)|torchrun .* -m training\.train)"
    command = re.search(rf"{start} .*?(configs/\S+\.yaml)", path.read_text())
    assert command, "the opening comment gives the command that uses the file"
    assert (root / command[2]).exists()


@pytest.mark.parametrize("path", each("model/*.yaml"))
def test_a_model_s_comment_counts_its_parameters(path):
    with torch.device("meta"):
        model = TwoTowers(load_config(ClipConfig, path))
    millions = [
        sum(weight.numel() for weight in part.parameters()) / 1e6 for part in (model, model.image, model.text)
    ]
    claimed = re.search(r"Parameters: (\S+) M, image tower (\S+) M, text tower (\S+) M", path.read_text())
    assert claimed
    assert [float(number) for number in claimed.groups()] == pytest.approx(millions, abs=0.05)
