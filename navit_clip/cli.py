"""`navit-clip`: the commands, each a module that is imported only when it is asked for."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import platform
import signal
import sys
from collections.abc import Callable, Sequence

from navit_clip.config import nearest
from navit_clip.errors import NavitClipError

COMMANDS = {
    "train": ("training.train", "train a pair of towers on shards"),
    "plan": ("training.plan.command", "memory, time, data and cost of a run on so many GPUs"),
    "eval": ("eval.evaluate", "zero-shot classification and retrieval"),
    "export": ("navit_clip.huggingface.export", "a trained model as a plain transformers folder"),
    "import": ("navit_clip.huggingface.importing", "SigLIP 2, SigLIP or open_clip weights as a model folder"),
    "embed": ("navit_clip.embedding", "vectors of images and captions in files; find pictures by a sentence"),
    "shards": ("navit_clip.shards.command", "build, inspect or validate shards"),
    "tokenizer": ("navit_clip.tokenizer_training", "train a tokenizer on the captions of shards"),
    "report": ("eval.report", "one HTML page of a run: curves, scores, pictures"),
}

OF_THE_MACHINE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code, as `exit_code` has it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(_versions())
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"error: no command {command!r}; {nearest(command, list(COMMANDS))}", file=sys.stderr)
        return USAGE_ERROR
    module, _ = COMMANDS[command]
    return exit_code(lambda: importlib.import_module(module).main(rest))


def exit_code(command: Callable[[], int]) -> int:
    """What a command returns; 2, and a line on stderr, for unusable input; 130, and a line, for Ctrl-C.

    Rights and full or read-only disks are the machine's, wherever they show: a line as well.
    """
    try:
        return command()
    except NavitClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher sends it again to what is leaving
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _versions() -> str:
    """What a report of a fault should name: this package, PyTorch as it was built, Python."""
    from torch import __version__ as torch_version  # takes a second, which other commands need not wait

    package = importlib.metadata.version("navit-clip")
    return f"navit-clip {package}, torch {torch_version}, Python {platform.python_version()}"


def _usage() -> str:
    rows = [f"  {command:<10} {summary}" for command, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: navit-clip COMMAND …",
            "",
            *rows,
            "",
            "navit-clip COMMAND --help says more of each; navit-clip --version is for reports of faults.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
