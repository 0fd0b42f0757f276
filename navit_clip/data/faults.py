"""The count of bad samples by cause, with an example of each to look at."""

from __future__ import annotations

from collections import Counter

from navit_clip.errors import SampleError


class Faults:
    """Samples that were skipped."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """The first error under each cause: key and detail."""

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, key: str, error: SampleError) -> None:
        """Counts an error under its cause."""
        self.counts[error.cause] += 1
        detail = error.detail if key in error.detail else f"{key}: {error.detail}"
        self.examples.setdefault(error.cause, detail)

    def summary(self) -> str:
        """One line for people: causes, the most frequent first, each with its first example."""
        if not self.total:
            return "none skipped"
        causes = (
            f"{cause}: {count}{f' (first {self.examples[cause]})' if cause in self.examples else ''}"
            for cause, count in self.counts.most_common()
        )
        return f"{self.total} skipped: " + "; ".join(causes)
