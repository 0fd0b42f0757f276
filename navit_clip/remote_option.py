"""`--remote key=value`, for commands that read shards: how those that lie elsewhere are fetched."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from navit_clip.config import config_of
from navit_clip.data.remote import RemoteConfig


def add_remote_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option; `remote_config(arguments.remote)` is what it says."""
    parser.add_argument(
        "--remote",
        nargs="+",
        default=[],
        metavar="key=value",
        help="how shards elsewhere are fetched, as data.remote of a run: cache=/scratch/shards retries=3",
    )


def remote_config(settings: Sequence[str]) -> RemoteConfig:
    """The settings of a command line.

    Raises:
        ConfigError: one is unknown, not of its type, or impossible.
    """
    return config_of(RemoteConfig, settings, where="--remote")
