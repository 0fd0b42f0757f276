from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eval import zero_shot
from eval.class_space import ClassSpace
from eval.zero_shot import (
    Outcomes,
    classification_chance,
    classification_metrics,
    classify,
    classify_scores,
    per_class_recall,
)

FIVE = ClassSpace.plain(["a", "b", "c", "d", "e"])

# Six images, five classes. By hand: the labels rank 0, 1, 0, 4, 2 and 0.
LOGITS = torch.tensor(
    [
        [9.0, 1.0, 2.0, 3.0, 4.0],
        [9.0, 8.0, 2.0, 3.0, 4.0],
        [1.0, 8.0, 2.0, 3.0, 4.0],
        [5.0, 4.0, 3.0, 2.0, 1.0],
        [5.0, 4.0, 3.0, 2.0, 1.0],
        [1.0, 2.0, 3.0, 4.0, 5.0],
    ]
)
LABELS = torch.tensor([0, 1, 1, 4, 2, 4])


def each(labels: torch.Tensor) -> list[tuple[int]]:
    return [(label,) for label in labels.tolist()]


def test_hand_worked_metrics():
    outcomes = classify_scores(LOGITS, FIVE, each(LABELS))
    assert outcomes.ranks.tolist() == [0, 1, 0, 4, 2, 0]
    assert outcomes.answers.tolist() == [0, 0, 1, 0, 0, 4]
    # Recall of class 0 is 1/1, of 1 it is 1/2, of 2 it is 0/1, of 4 it is 1/2; class 3 has no image.
    assert per_class_recall(outcomes.ranks, LABELS) == {0: 1.0, 1: 0.5, 2: 0.0, 4: 0.5}
    metrics, intervals = classification_metrics(outcomes, FIVE, LABELS.numpy())
    assert metrics["acc1"] == 3 / 6
    assert metrics["acc5"] == 1.0
    assert metrics["mean_per_class_recall"] == (1 + 0.5 + 0 + 0.5) / 4
    assert set(intervals) == set(metrics) == {"acc1", "acc5", "mean_per_class_recall", "ece", "nll"}
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high or name == "ece"  # resampling moves a gap's size upwards


def test_the_interval_of_recall_by_class_lies_round_it_where_small_classes_are_harder():
    """Of resamples, four in ten lack a class of one image."""
    labels = np.array([*range(40), *[40] * 60])
    right = labels == 40
    outcomes = Outcomes(*(torch.from_numpy(part) for part in (1 - right, labels, right * 1.0, right * 1.0)))
    space = ClassSpace.plain([str(number) for number in range(41)])
    metrics, intervals = classification_metrics(outcomes, space, labels)
    low, high = intervals["mean_per_class_recall"]
    assert low < metrics["mean_per_class_recall"] == 1 / 41 < high


def test_recall_and_accuracies_are_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 7
    logits = torch.randn(300, 7, generator=generator) + F.one_hot(labels, 7)
    seven = ClassSpace.plain([str(number) for number in range(7)])
    metrics, _ = classification_metrics(classify_scores(logits, seven, each(labels)), seven, labels.numpy())
    kind = {"num_classes": 7}
    theirs = {
        "acc1": torchmetrics.multiclass_accuracy(logits, labels, **kind, average="micro"),
        "acc5": torchmetrics.multiclass_accuracy(logits, labels, **kind, average="micro", top_k=5),
        "mean_per_class_recall": torchmetrics.multiclass_recall(logits, labels, **kind, average="macro"),
    }
    for name, value in theirs.items():
        assert metrics[name] == pytest.approx(value.item(), abs=1e-6)


def test_confidence_and_likelihood_by_hand():
    scores = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    outcomes = classify_scores(scores, ClassSpace.plain(["a", "b"]), [(0,), (0,)])
    assert outcomes.confidence.tolist() == pytest.approx([3 / 4, 4 / 5])
    assert outcomes.surprise.tolist() == pytest.approx([-math.log(1 / 4), -math.log(4 / 5)])
    half = classify_scores(scores, ClassSpace.plain(["a", "b"]), [(0,), (0,)], logit_scale=0.5)
    assert half.confidence[1].item() == pytest.approx(2 / 3)


def test_metrics_and_chance_by_the_number_of_answers():
    four = ClassSpace.plain(["a", "b", "c", "d"])
    outcomes = classify_scores(torch.eye(4), four, [(label,) for label in range(4)])
    metrics, _ = classification_metrics(outcomes, four, np.arange(4))
    assert "acc5" not in metrics
    assert classification_chance(four, [(0,), (3,)], by_class=True) == {
        "acc1": 0.25,
        "mean_per_class_recall": 0.25,
    }
    ten = ClassSpace.plain([str(number) for number in range(10)])
    chance = classification_chance(ten, [(0,), (1, 2)], by_class=False)
    # Of ten answers, five miss one right one half the time, and two right ones with 8 over 5 / 10 over 5.
    assert chance == pytest.approx({"acc1": (0.1 + 0.2) / 2, "acc5": (0.5 + 1 - 56 / 252) / 2})


def test_several_labels_may_be_right():
    outcomes = classify_scores(LOGITS[3:5], FIVE, [(4, 1), (3, 4)])
    assert outcomes.ranks.tolist() == [1, 3]
    metrics, _ = classification_metrics(outcomes, FIVE, labels=None)
    assert "mean_per_class_recall" not in metrics
    probabilities = LOGITS[3].double().softmax(dim=0)
    assert outcomes.surprise[0].item() == pytest.approx(-(probabilities[4] + probabilities[1]).log().item())


def test_a_constant_model_is_right_only_about_the_first_class():
    three = ClassSpace.plain(["a", "b", "c"])
    outcomes = classify_scores(torch.zeros(3, 3), three, [(0,), (1,), (2,)])
    assert outcomes.ranks.tolist() == [0, 1, 2]


@given(seed=st.integers(0, 2**16))
def test_ranks_agree_with_a_stable_sort(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 4, (7, 9), generator=generator).float()
    labels = torch.randint(0, 9, (7,), generator=generator)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    expected = (order == labels[:, None]).int().argmax(dim=1)
    nine = ClassSpace.plain([str(number) for number in range(9)])
    assert torch.equal(classify_scores(logits, nine, each(labels)).ranks, expected)


def test_tiles_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(11, 8, generator=generator), dim=1)
    classes = F.normalize(torch.randn(6, 8, generator=generator), dim=1)
    labels = each(torch.randint(0, 6, (11,), generator=generator))
    six = ClassSpace.plain([str(number) for number in range(6)])
    whole = classify(images, classes, six, labels, logit_scale=10.0)
    monkeypatch.setattr(zero_shot, "IMAGES_AT_ONCE", 4)
    tiled = classify(images, classes, six, labels, logit_scale=10.0)
    assert torch.equal(tiled.ranks, whole.ranks)
    torch.testing.assert_close(tiled.confidence, whole.confidence)
