"""What became of the samples of each source: read, used, skipped by cause. Plain JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypedDict


class SourceCounts(TypedDict):
    """What became of the samples of one source, or of one worker's share of them."""

    read: int
    """Samples taken from shards, good and bad, those that wait for a batch among them."""
    used: int
    """Samples that went into batches."""
    skipped: dict[str, int]
    """Bad samples by cause."""


def no_counts() -> SourceCounts:
    """Before the first sample."""
    return {"read": 0, "used": 0, "skipped": {}}


def total_counts(counts: Iterable[SourceCounts]) -> SourceCounts:
    """The sum of some workers' or sources' counts."""
    total = no_counts()
    skipped: Counter[str] = Counter()
    for part in counts:
        total["read"] += part["read"]
        total["used"] += part["used"]
        skipped.update(part["skipped"])
    total["skipped"] = dict(skipped)
    return total


def total_by_source(workers: Iterable[Sequence[SourceCounts]]) -> list[SourceCounts]:
    """The sum over workers, or ranks, of each source's counts."""
    return [total_counts(parts) for parts in zip(*workers, strict=True)]


def counts_line(counts: SourceCounts) -> str:
    """For people: read, used, and what was skipped why, the most frequent cause first."""
    causes = sorted(counts["skipped"].items(), key=lambda item: (-item[1], item[0]))
    skipped = ", ".join(f"{number} {cause}" for cause, number in causes) or "none"
    return f"{counts['read']} read, {counts['used']} used, skipped: {skipped}"
