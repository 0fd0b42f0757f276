"""Whole evaluations on several ranks, interrupted and not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.model import PackedModel
from eval.store import Store
from eval.task_config import EvalConfig, TaskConfig
from eval.tasks import evaluate
from navit_clip.distributed import World
from tests.eval_builders import ByteTokenizer, small_model, write_labelled
from tests.ranks import on_ranks

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def suite(tmp_path) -> EvalConfig:
    """Classification and retrieval of 23 images, two of which are none, in 4 packs."""
    labels = [number % 7 for number in range(23)]
    shard = write_labelled(tmp_path / "images.tar", labels, broken=[3, 20])
    tasks = [
        TaskConfig(dataset=shard, task="zeroshot_classification", label_key="json.kind", templates=["a {}"]),
        TaskConfig(dataset=shard, task="zeroshot_retrieval"),
    ]
    return EvalConfig(tasks=tasks, tokens_per_image=9, token_budget=60, num_workers=0)


class Stopped(PackedModel):
    """Embeds so many packs of images, and then is interrupted."""

    def __init__(self, packs: int):
        super().__init__(small_model(), ByteTokenizer(), "small", "random")
        self.left = packs

    def encode_images(self, pack: Any) -> torch.Tensor:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().encode_images(pack)


def results(world: World, suite: EvalConfig, vectors: Path, packs: int = 100) -> tuple[list[str], int]:
    """Every digit of every result, and how many packs were not needed; nothing where it was interrupted."""
    model = Stopped(packs)
    try:
        found = list(evaluate(model, suite, world, Store(vectors)))
    except KeyboardInterrupt:
        return [], model.left
    return [json.dumps(result.as_json("small", "random")) for result in found], model.left


@pytest.mark.parametrize("size", [2, 3])
def test_results_are_the_same_to_the_last_digit(suite, tmp_path, size):
    alone, _ = results(ALONE, suite, tmp_path / "alone")
    assert len(alone) == len(suite.tasks)
    for found, _ in on_ranks(size, results, suite, tmp_path / "ranks"):
        assert found == alone


def test_an_interrupted_evaluation_goes_on_on_other_ranks_to_the_same_digit(suite, tmp_path):
    alone, _ = results(ALONE, suite, tmp_path / "alone")
    vectors = tmp_path / "ranks"
    assert on_ranks(2, results, suite, vectors, 1) == [([], 0)] * 2
    resumed = on_ranks(3, results, suite, vectors)
    assert [found for found, _ in resumed] == [alone] * 3
    # Of the first task's four packs two were there already; of the second's none.
    assert sum(100 - left for _, left in resumed) == 2 + 4
