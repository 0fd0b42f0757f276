"""The errors that users meet. Each message says what, where, what was expected and what was found.

Bugs are never wrapped in these: they surface as they are. Only `SampleError` may be skipped by the
stream, and then it is counted under its cause.
"""

from __future__ import annotations

from collections.abc import Iterable


def with_faults(what: str, faults: Iterable[str]) -> str:
    """A message of all that is wrong with something: one fault on its line, several on lines of their own."""
    faults = [*faults]
    return ("\n  " if len(faults) > 1 else " ").join([f"{what}:", *faults])


class NavitClipError(Exception):
    """Anything that is the input's fault; the command line prints it without a traceback."""


class ConfigError(NavitClipError, ValueError):
    """A setting is unknown, impossible, or contradicts another; the message names its dotted key."""


class SampleError(NavitClipError):
    """One sample of a shard cannot be used.

    Attributes:
        cause: a short, stable label that skipped samples are counted under, such as "undecodable image".
    """

    def __init__(self, cause: str, detail: str):
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail

    def alone(self) -> SampleError:
        """The same without its traceback and cause, whose frames hold what was read."""
        return SampleError(self.cause, self.detail)

    def __reduce__(self):
        # Errors cross from worker processes to the main one by pickle.
        return (SampleError, (self.cause, self.detail))


class DataError(NavitClipError):
    """The stream as a whole cannot go on: no shard matches, a shard is unreadable, or every sample is bad."""


class CheckpointError(NavitClipError):
    """A checkpoint or a model folder is missing, incomplete, or belongs to another model."""


class DivergenceError(NavitClipError):
    """Training has left the finite numbers."""


class ExportError(NavitClipError):
    """A model cannot be expressed in the format asked for, or the exported model is not the trained one."""
