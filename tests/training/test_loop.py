"""When a run evaluates."""

from __future__ import annotations

import pytest

from training.loop import is_due


@pytest.mark.parametrize(
    ("every", "step", "pairs", "due"),
    [
        (0, 10, 100, False),
        (10, 10, 100, True),
        (10, 11, 110, False),
        (10, 90, 900, True),  # ten steps before the end
        (10, 100, 995, False),  # half a step before it
        (10, 90, 960, False),
        (10, 90, 940, True),
    ],
)
def test_what_is_due_shortly_before_the_end_is_left_to_it(every, step, pairs, due):
    assert is_due(every, step, pairs, total_pairs=1000) == due
