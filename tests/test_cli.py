"""The first word after `navit-clip`."""

from __future__ import annotations

import errno
import os
import platform
from importlib.metadata import version

import pytest
import torch

from navit_clip.cli import COMMANDS, exit_code, main


def test_the_version_names_what_a_number_depends_on(capsys):
    assert main(["--version"]) == 0
    said = (
        f"navit-clip {version('navit-clip')}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_without_a_command_all_are_listed(capsys, words):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown and summary in shown for command, (_, summary) in COMMANDS.items())


def test_what_the_machine_does_not_allow_is_a_line_and_a_bug_is_not(capsys):
    def reads(code: int) -> int:
        raise OSError(code, os.strerror(code), "/mnt/shards")

    assert exit_code(lambda: reads(errno.EACCES)) == 2
    assert exit_code(lambda: reads(errno.ENOSPC)) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: /mnt/shards: Permission denied",
        "error: /mnt/shards: No space left on device",
    ]
    with pytest.raises(FileNotFoundError):
        exit_code(lambda: reads(errno.ENOENT))


@pytest.mark.parametrize(
    ("command", "summary"), [("build", "a table of captions"), ("inspect", "HTML"), ("validate", "decode")]
)
def test_each_command_on_shards_says_what_it_does(capsys, command, summary):
    for words in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit):
            main(["shards", *words])
        assert summary in capsys.readouterr().out
