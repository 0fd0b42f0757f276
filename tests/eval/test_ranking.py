from __future__ import annotations

import torch

from eval.ranking import best_rank, share_within


def test_rank_counts_the_targets_that_score_higher():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    relevant = torch.eye(3, dtype=torch.bool)
    assert best_rank(scores, relevant).tolist() == [2, 0, 1]


def test_best_of_several_relevant_targets_counts():
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    assert best_rank(scores, torch.tensor([[False, False, True, True]])).tolist() == [2]
    assert best_rank(scores, torch.tensor([[False, True, False, True]])).tolist() == [1]


def test_ties_go_to_the_lower_index():
    scores = torch.zeros(4, 4)
    assert best_rank(scores, torch.eye(4, dtype=torch.bool)).tolist() == [0, 1, 2, 3]


def test_equal_relevant_targets_do_not_stand_in_each_others_way():
    scores = torch.tensor([[0.5, 0.5, 0.5]])
    assert best_rank(scores, torch.tensor([[False, True, True]])).tolist() == [1]


def test_share_within():
    ranks = torch.tensor([0, 1, 4, 5, 9])
    assert [share_within(ranks, k) for k in (1, 5, 10)] == [1 / 5, 3 / 5, 1.0]
