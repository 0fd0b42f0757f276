from __future__ import annotations

import numpy as np
import pytest
import torch

from eval import latency
from eval.cost import SHARES, Judged, cascade, measure_cost
from eval.image_config import ImageConfig
from eval.model import PackedModel
from eval.samples import ShardSamples
from eval.store import Store
from eval.task_config import EvalConfig, TaskConfig
from eval.tasks import evaluate
from eval.views import View
from eval.zero_shot import Outcomes
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from tests.eval_builders import ByteTokenizer, judged, small_model, write_labelled

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def judgement(right: list[bool], confidence: list[float], tokens: float) -> Judged:
    count = len(right)
    ranks = (~torch.tensor(right)).long()
    outcomes = Outcomes(ranks, ranks, torch.tensor(confidence).double(), torch.zeros(count).double())
    return Judged(outcomes, float(tokens), tokens / 1000)


# Sure of the first two, which are right; unsure of the last two, which only more tokens get right.
FEW = judgement([True, True, False, False], [0.9, 0.8, 0.3, 0.4], tokens=64)
MANY = judgement([True, False, True, True], [0.9, 0.9, 0.9, 0.9], tokens=256)


@pytest.mark.parametrize(("share", "acc1"), [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.75, 0.75), (1.0, 0.75)])
def test_a_cascade_by_hand(share, acc1):
    """The least confident go on first: images 2, 3, then 1, which more tokens get wrong."""
    point = cascade(64, FEW, 256, MANY, share)
    assert point.acc1 == acc1
    assert point.mean_tokens == 64 + share * 256
    assert point.seconds_per_image == pytest.approx(0.064 + share * 0.256)


def test_every_way_at_every_number_of_tokens():
    asked = []

    def judge(config: ImageConfig):
        asked.append((config.tokens_per_image, config.upscale, config.keep))
        return judgement([True, False], [0.5, 0.6], config.tokens_per_image * config.keep)

    points = measure_cost(judge, [64, 256, 64], ImageConfig(tokens_per_image=100))
    resized = [(64, False, 1), (64, True, 1), (256, False, 1), (256, True, 1)]
    assert sorted(asked) == sorted([*resized, (256, True, 0.25)])
    ways = [point["way"] for point in points]
    counts = {"resized": 2, "not upscaled": 2, "dropped": 1, "cascade": len(SHARES)}
    assert {way: ways.count(way) for way in ways} == counts
    dropped = points[ways.index("dropped")]
    assert (dropped["tokens_per_image"], dropped["mean_tokens"]) == (64, 64)


def test_costs_of_a_task(tmp_path):
    shard = write_labelled(tmp_path / "images.tar", [0, 1, 2, 0, 1])
    task = TaskConfig(
        dataset=shard, task="zeroshot_classification", label_key="json.kind", cost_tokens=[4, 9, 16]
    )
    config = EvalConfig(tasks=[task], tokens_per_image=9, token_budget=64, num_workers=0)
    (result,) = evaluate(judged(), config, ALONE)
    points = result.details["cost"]
    resized = [point for point in points if point["way"] == "resized"]
    assert [point["tokens_per_image"] for point in resized] == [4, 9, 16]
    assert resized[1]["acc1"] == result.metrics["acc1"]
    assert np.all(np.diff([point["mean_tokens"] for point in resized]) > 0)
    assert all(point["seconds_per_image"] > 0 for point in points)
    assert all(point["interval"][0] <= point["acc1"] <= point["interval"][1] for point in points)


class Clocked(PackedModel):
    """Takes a second for every image by the clock that is read here, and ten for the first pack."""

    def __init__(self):
        super().__init__(small_model(), ByteTokenizer())
        self.now, self.packs = 0.0, 0

    def encode_images(self, pack):
        self.now += len(pack.grid) * (1 if self.packs else 10)
        self.packs += 1
        return super().encode_images(pack)


@pytest.mark.parametrize("broken", [(), range(5)])
def test_time_is_measured_once_the_tower_is_warm(tmp_path, monkeypatch, broken):
    """Five images a pack: with the first pack unreadable, others are measured."""
    samples = ShardSamples([write_labelled(tmp_path / "images.tar", [0] * 12, broken)], None, labels=False)
    model = Clocked()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: model.now)
    config = ImageConfig(tokens_per_image=4, token_budget=20, num_workers=0)
    assert latency.seconds_per_image(model, samples, ALONE, config, View()) == 1
    assert model.packs == 2 * (1 + latency.ROUNDS)


def test_time_is_measured_anew_where_vectors_are_kept(tmp_path):
    task = TaskConfig(
        dataset=write_labelled(tmp_path / "images.tar", [0, 1]),
        task="zeroshot_classification",
        label_key="json.kind",
        cost_tokens=[4],
    )
    config = EvalConfig(tasks=[task], tokens_per_image=9, token_budget=64, num_workers=0)
    for model in (judged(), again := Clocked()):
        list(evaluate(model, config, ALONE, Store(tmp_path / "vectors")))
    assert again.packs == 2 * (1 + latency.ROUNDS)  # resized, and not upscaled


def test_costs_are_of_classification():
    with pytest.raises(ConfigError, match="cost_tokens: costs are measured on zeroshot_classification"):
        TaskConfig(dataset="a", task="zeroshot_retrieval", cost_tokens=[64])
    with pytest.raises(ConfigError, match="cost_tokens: expected at least 1"):
        TaskConfig(dataset="a", task="zeroshot_classification", cost_tokens=[0])
