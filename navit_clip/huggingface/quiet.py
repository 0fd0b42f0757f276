"""transformers without its progress bars, and without warnings about defaults that a config does not use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors alone are shown inside; what was set before comes back."""
    verbosity = logging.get_verbosity()
    bars_were_shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_were_shown:
            logging.enable_progress_bar()
