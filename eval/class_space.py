"""What is scored and what counts as right: columns of scores, and the classes that labels mean.

A model scores every image against columns, one per prompt. Where columns are classes, this is plain
classification. ObjectNet's classes stand for one to three ImageNet ids each, and so have other spaces:

    restricted  125 columns, the ids of all classes; a class scores as its best column
    mapped      1000 columns, all ids; right where one of the class's own columns comes out on top, so that
                a prediction outside the 125 ids is wrong
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eval.names import check_class_names


@dataclass(frozen=True)
class ClassSpace:
    """Columns, classes, and which column stands for which class."""

    classes: tuple[str, ...]
    """Names of the classes; a label is a place in it."""
    prompts: tuple[str, ...]
    """The name that each column's prompts hold."""
    column_class: tuple[int, ...]
    """The class that each column stands for; -1 stands for none."""
    merged: bool
    """Whether columns are merged into their classes, by the best score, before anything is ranked."""

    @classmethod
    def plain(cls, names: Sequence[str]) -> ClassSpace:
        """Every column is a class."""
        return cls(tuple(names), tuple(names), tuple(range(len(names))), merged=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """What each ranked column says."""
        return self.classes if self.merged else self.prompts

    def renamed(self, names: Sequence[str]) -> ClassSpace:
        """The same columns under other names.

        Raises:
            ConfigError: they are not as many as the columns, or are theirs in another order.
        """
        check_class_names(names, self.prompts, whose="the columns of scores")
        classes = tuple(names) if self.classes == self.prompts else self.classes
        return replace(self, classes=classes, prompts=tuple(names))

    def ranked(self, scores: Float[Tensor, "images columns"]) -> Float[Tensor, "images answers"]:
        """The scores that are ranked: those of the columns, or of the classes that they are merged into."""
        if not self.merged:
            return scores
        index = torch.tensor(self.column_class, device=scores.device).expand_as(scores)
        merged = scores.new_full((len(scores), len(self.classes)), -torch.inf)
        return merged.scatter_reduce(1, index, scores, "amax")

    def relevant(self, accepted: Sequence[Sequence[int]]) -> Bool[Tensor, "images answers"]:
        """Which answers are right for each image.

        Args:
            accepted: the labels that count as right, at least one for each image.
        """
        marks = torch.zeros(len(accepted), len(self.answers), dtype=torch.bool)
        for row, labels in zip(marks, accepted, strict=True):
            for label in labels:
                row[self._answers_of[label]] = True
        return marks

    @cached_property
    def _answers_of(self) -> list[list[int]]:
        """The answers that are right for each class."""
        if self.merged:
            return [[label] for label in range(len(self.classes))]
        answers: list[list[int]] = [[] for _ in self.classes]
        for column, label in enumerate(self.column_class):
            if label >= 0:
                answers[label].append(column)
        return answers
