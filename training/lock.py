"""One run in a folder at a time: a lock on a file in it, which the kernel takes back from who dies.

It is a record lock (lockf), not flock's: that one would pass to every worker process that the run forks, and
stay held for as long as they outlive a run that was killed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from navit_clip.distributed import World
from navit_clip.errors import CheckpointError

LOCK_FILE = ".run.lock"
PATIENCE = 3.0
"""Seconds to wait for a process that is perhaps on its way out: killed, it still has memory to give back."""


@contextmanager
def run_lock(run: Path, world: World) -> Iterator[str]:
    """Holds a run's folder, by the main rank, until the block ends; the folder is made where there is none.

    A folder that was made here goes again where nothing was written to it.

    Yields:
        What there is to say where the file system has no locks, and nothing is held; else nothing.

    Raises:
        CheckpointError: another process holds it; says which.
    """
    held: list[IO[str]] = []
    made = world.is_main and not run.exists()

    def acquire() -> str:
        run.mkdir(parents=True, exist_ok=True)
        try:
            held.append(_locked(run))
        except OSError as error:
            return f"{run}: no lock to be had ({error.strerror}); see that no other process trains here"
        return ""

    try:
        yield world.from_main(acquire)
    finally:
        for file in held:
            (run / LOCK_FILE).unlink(missing_ok=True)
            file.close()
        if made:
            with suppress(OSError):  # there is a run in it
                run.rmdir()


def _locked(run: Path) -> IO[str]:
    """The lock's file, open and locked, with who holds it in it.

    Raises:
        CheckpointError: another process holds it.
        OSError: the file system has no locks.
    """
    path = run / LOCK_FILE
    patient_until = time.monotonic() + PATIENCE
    while True:
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # POSIX leaves open which of the two
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if time.monotonic() > patient_until:
                raise CheckpointError(
                    f"{run}: {holder} trains here; end it, or set another folder= (its machine is gone, and "
                    f"the lock is not? delete {path})"
                ) from error
            time.sleep(0.1)
            continue
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        if _is_at(path, file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')},\n")
            file.flush()
            return file
        file.close()  # the holder before has just taken it away


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file is the one that is at a path now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
