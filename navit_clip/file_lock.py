"""One process at a time, by a file that it holds."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a file, which is made where it is not there and stays; ends with the process, however that ends.

    Args:
        path: the file.
        wait: whether to wait until no other process holds it.

    Raises:
        BlockingIOError: another process holds it, and there is to be no wait.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
