"""Asking a run to stop: SIGTERM and SIGUSR1, which clusters send before they take a machine away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from navit_clip.distributed import World

STOPPED = 75
"""Exit code of a run that was asked to stop and saved: EX_TEMPFAIL, "try again later"."""


class StopRequest:
    """Whether some rank was asked to stop."""

    def __init__(self):
        self._asked = False

    @classmethod
    @contextmanager
    def listening(cls) -> Iterator[StopRequest]:
        """Takes SIGTERM and SIGUSR1 as requests until the block ends. They may come to any of the ranks."""
        request = cls()
        before = {number: signal.signal(number, request.ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield request
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def asked(self, world: World) -> bool:
        """The same on all ranks, which call this together; a few bytes between hosts."""
        return any(world.counts(int(self._asked)))

    @property
    def here(self) -> bool:
        """Whether this rank was."""
        return self._asked

    def ask(self, *_: object) -> None:
        """From now on, on this rank. May come from a signal, or from another thread."""
        self._asked = True
