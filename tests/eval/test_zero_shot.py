from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eval import zero_shot
from eval.zero_shot import (
    classification_chance,
    classification_metrics,
    label_ranks,
    logit_label_ranks,
    per_class_recall,
)

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


def test_hand_worked_metrics():
    ranks = logit_label_ranks(LOGITS, LABELS)
    assert ranks.tolist() == [0, 1, 0, 4, 2, 0]
    # Recall of class 0 is 1/1, of 1 it is 1/2, of 2 it is 0/1, of 4 it is 1/2; class 3 has no image.
    assert per_class_recall(ranks, LABELS) == {0: 1.0, 1: 0.5, 2: 0.0, 4: 0.5}
    assert classification_metrics(ranks, LABELS, num_classes=5) == {
        "acc1": 3 / 6,
        "acc5": 1.0,
        "mean_per_class_recall": (1 + 0.5 + 0 + 0.5) / 4,
    }


def test_fewer_than_five_classes_have_no_acc5():
    ranks = torch.tensor([0, 1])
    assert set(classification_metrics(ranks, torch.tensor([0, 1]), num_classes=4)) == {
        "acc1",
        "mean_per_class_recall",
    }
    assert classification_chance(4) == {"acc1": 0.25, "mean_per_class_recall": 0.25}
    assert classification_chance(10) == {"acc1": 0.1, "acc5": 0.5, "mean_per_class_recall": 0.1}


def test_a_constant_model_is_right_only_about_the_first_class():
    ranks = logit_label_ranks(torch.zeros(3, 3), torch.tensor([0, 1, 2]))
    assert ranks.tolist() == [0, 1, 2]


@given(seed=st.integers(0, 2**16))
def test_ranks_agree_with_a_stable_sort(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 4, (7, 9), generator=generator).float()
    labels = torch.randint(0, 9, (7,), generator=generator)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    expected = (order == labels[:, None]).int().argmax(dim=1)
    assert torch.equal(logit_label_ranks(logits, labels), expected)


def test_tiles_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(11, 8, generator=generator), dim=1)
    classes = F.normalize(torch.randn(6, 8, generator=generator), dim=1)
    labels = torch.randint(0, 6, (11,), generator=generator)
    whole = label_ranks(images, classes, labels)
    monkeypatch.setattr(zero_shot, "IMAGES_AT_ONCE", 4)
    assert torch.equal(label_ranks(images, classes, labels), whole)
    assert whole.tolist() == logit_label_ranks(images @ classes.T, labels).tolist()
