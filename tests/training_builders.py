"""A small run on shards that the test made: config, tokenizer and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from navit_clip.config import build_config
from tests.data_builders import small_tokenizer, write_pairs
from training.config import RunConfig

TOWER = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}


def small_run(folder: Path, **settings: Any) -> RunConfig:
    """The config of a run in `folder` / run, on 60 pictures in two shards, with a tokenizer beside them.

    Args:
        folder: empty, or as an earlier call left it.
        settings: top-level settings of the run that replace the small ones.
    """
    data, tokenizer = folder / "shards", folder / "tokenizer"
    if not data.exists():
        data.mkdir()
        write_pairs(data, [30, 30])
        small_tokenizer().save(tokenizer)
    tree = {
        "folder": str(folder / "run"),
        "pairs": 120,
        "tokenizer": str(tokenizer),
        "log_every": 1,
        "model": {
            "image": {**TOWER, "patch_size": 8, "position": {"table_side": 4}},
            "text": {**TOWER, "vocab_size": 512},
        },
        "data": {
            "shards": [str(data / "*.tar")],
            "resolution": {"min_side": 16, "max_side": 48},
            "drop": {"rate": 0.25},
            "tokens_per_batch": 128,
            "lookahead": 8,
            "num_workers": 0,
        },
        "engine": {"precision": "fp32"},
        "evaluation": {"num_workers": 0},
        **settings,
    }
    return build_config(RunConfig, tree, where="small_run")
