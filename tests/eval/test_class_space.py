from __future__ import annotations

import pytest
import torch

from eval.class_space import ClassSpace
from eval.zero_shot import classify_scores
from navit_clip.errors import ConfigError

# A clock is either of two columns; where all columns are ranked, one of them stands for no class.
RESTRICTED = ClassSpace(("clock", "cup"), ("analog", "mug", "digital"), (0, 1, 0), merged=True)
MAPPED = ClassSpace(("clock", "cup"), ("analog", "dog", "digital", "mug"), (0, -1, 0, 1), merged=False)


def test_a_class_scores_as_its_best_column():
    scores = torch.tensor([[0.1, 0.5, 0.7], [0.2, 0.3, 0.1]])
    assert torch.equal(RESTRICTED.ranked(scores), torch.tensor([[0.7, 0.5], [0.2, 0.3]]))
    outcomes = classify_scores(scores, RESTRICTED, [(0,), (0,)])
    assert outcomes.ranks.tolist() == [0, 1]
    assert [RESTRICTED.answers[answer] for answer in outcomes.answers] == ["clock", "cup"]


def test_a_column_without_a_class_is_a_wrong_answer_where_all_columns_are_ranked():
    scores = torch.tensor([[0.1, 0.9, 0.8, 0.2], [0.1, 0.2, 0.9, 0.3], [0.5, 0.9, 0.8, 0.2]])
    outcomes = classify_scores(scores, MAPPED, [(0,), (0,), (1,)])
    # Only the dog stands before the digital clock; before the mug stand the dog and both clocks.
    assert outcomes.ranks.tolist() == [1, 0, 3]
    assert MAPPED.answers[outcomes.answers[0]] == "dog"


def test_restricting_never_scores_lower_than_mapping():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 4, generator=generator)
    accepted = [(label,) for label in torch.randint(0, 2, (200,), generator=generator).tolist()]
    restricted = classify_scores(scores[:, [0, 3, 2]], RESTRICTED, accepted).right
    mapped = classify_scores(scores, MAPPED, accepted).right
    assert (restricted | ~mapped).all()
    assert restricted.sum() > mapped.sum()


def test_other_names_for_the_columns():
    assert ClassSpace.plain(["a", "b"]).renamed(["c", "d"]) == ClassSpace.plain(["c", "d"])
    renamed = RESTRICTED.renamed(["x", "y", "z"])
    assert (renamed.classes, renamed.prompts) == (("clock", "cup"), ("x", "y", "z"))
    with pytest.raises(
        ConfigError, match="class_names: expected 3, as many as the columns of scores, found 2"
    ):
        RESTRICTED.renamed(["x", "y"])
