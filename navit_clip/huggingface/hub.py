"""Models by their name on the Hugging Face hub: what a name means, and how a folder gets there."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (from which package depends on the hub's version)
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from navit_clip.errors import CheckpointError, ExportError
from navit_clip.weights import RESULTS_FOLDER

NAME = re.compile(r"[\w.-]+/[\w.-]+")
PATTERNS = ["*.json", "*.yaml", "*.txt", "*.model", "*.safetensors"]
"""What is fetched of a repository: no code and nothing pickled."""
AWAY = (HTTPError, HFValidationError, OSError)
"""What huggingface_hub raises where the hub is away, or takes or gives nothing."""


def fetch(name: str, revision: str | None = None) -> Path:
    """The local copy of a repository, fetched where it is not in the cache.

    Raises:
        CheckpointError: there is no such repository, or it cannot be reached.
    """
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder, and no name of a repository (owner/model)")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except AWAY as error:
        raise CheckpointError(
            f"{name}: no such folder here, and not to be had from the hub: {_reason(error)}"
        ) from error


def check_push(name: str) -> None:
    """Raises ExportError unless a repository may have this name, by the hub's own rules."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ExportError(f"--push: {_first_line(error)}") from error
    if not NAME.fullmatch(name):
        raise ExportError(f"--push: expected owner/model, found {name!r}")


def push(folder: Path, name: str, private: bool = False) -> str:
    """Uploads a folder as a model repository, which is made where there is none.

    Returns:
        Its address.

    Raises:
        ExportError: the hub does not take it; the folder stays where it is.
    """
    check_push(name)
    hub = HfApi()
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Export from NaViT-CLIP",
            ignore_patterns=[f"{RESULTS_FOLDER}/*"],  # of evaluations here, cached vectors among them
        )
    except AWAY as error:
        raise ExportError(
            f"--push {name}: {folder} is whole, and not on the hub: {_reason(error)}"
        ) from error
    return str(address)


def _reason(error: BaseException) -> str:
    if isinstance(error, GatedRepoError):
        return "access has to be asked for on its page, and whoever has it be logged in (hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private (hf auth login)"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, LocalTokenNotFoundError):
        return "nobody is logged in (hf auth login)"
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return f"{_reason(error.__cause__)}, and there is no copy in the cache"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on (HF_HUB_OFFLINE)"
    if isinstance(error, HTTPError | ConnectionError | TimeoutError) and not isinstance(
        error, HfHubHTTPError
    ):
        return f"it cannot be reached ({_first_line(error)})"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{_first_line(error)}; log in as who may write there (hf auth login, or HF_TOKEN)"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
