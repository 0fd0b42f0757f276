"""Shards that lie elsewhere -> whole files in a cache on this machine, through fsspec.

http(s), s3, gs, hf and whatever else fsspec knows, and the output of commands (`pipe:COMMAND`) that the
config allows by name. A shard is downloaded once for all processes of the machine, in pieces; an attempt that
fails goes on where the last one came to, unless the shard has changed there since. What has not all its bytes
is never given out. What is in the cache is taken for what its URL names, and the URL is not asked again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from navit_clip.errors import ConfigError, DataError
from navit_clip.file_lock import locked

PIPE = "pipe:"
_PIECE = 16 * 2**20
_LONGEST_WAIT = 60.0
_GONE = (401, 403, 404, 410)
"""Answers of HTTP after which no retry helps."""
_VERSION = ("ETag", "etag", "LastModified", "Last-Modified", "updated", "mtime", "blob_id")
"""What backends say of a file beside its size that changes when it does."""
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
"""What fsspec needs for a protocol; all but the last come with navit-clip[remote]."""


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """How shards that lie elsewhere are fetched. Keys and endpoints are fsspec's, from its usual places."""

    cache: str = "~/.cache/navit_clip/shards"
    """Folder of the shards that were fetched."""
    cache_gigabytes: float = 100.0
    """Size of the cache; the shards used longest ago make room. One shard always stays."""
    retries: int = 8
    """Attempts after one that brought nothing, before a shard is given up."""
    wait: float = 0.5
    """Seconds before the first retry; each further one waits twice as long, up to a minute."""
    timeout: float = 60.0
    """Seconds without an answer or a byte after which an attempt has failed."""
    pipe_commands: list[str] = field(default_factory=list)
    """Programs that `pipe:` shards may run, by name; without a shell."""

    def __post_init__(self):
        for name, smallest in {"cache_gigabytes": 0, "retries": 0, "wait": 0}.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name}: expected at least {smallest}, found {getattr(self, name)}")
        if self.timeout <= 0:
            raise ConfigError(f"timeout: expected some seconds, found {self.timeout}")


def is_remote(path: str) -> bool:
    """Whether a shard's path is a URL or a command."""
    return path.startswith(PIPE) or "://" in path


def find_remote(pattern: str, config: RemoteConfig) -> list[str]:
    """The URLs that a URL means: itself, or with a `*`, or a slash at its end, what is found there.

    Raises:
        DataError: the place cannot be asked; a command is not allowed; a package is missing.
    """
    if pattern.startswith(PIPE):
        _command(pattern, config)
        return [pattern]
    _check_package(pattern)
    if pattern.endswith("/"):
        pattern += "*.tar"
    if "*" not in pattern:
        return [pattern]
    fs, path = _file_system(pattern, config)
    return sorted(fs.unstrip_protocol(found) for found in _patiently(pattern, config, lambda: fs.glob(path)))


def open_remote(url: str, config: RemoteConfig) -> BinaryIO:
    """A shard's bytes, fetched unless the cache has them; stays readable when the cache lets go of it.

    Raises:
        DataError: it is not there, or not to be had after all retries.
    """
    cache = Path(config.cache).expanduser()
    name = cache_name(url)
    whole, partial = cache / f"{name}.tar", cache / f"{name}.partial"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(_lock_of(partial)):
            # Opened before others make room: an open file stays readable.
            with suppress(FileNotFoundError):
                file = whole.open("rb")
                os.utime(file.fileno())
                return file
            _fetch(url, partial, config)
            file = partial.open("rb")
            partial.rename(whole)
        with locked(cache / "room.lock"):
            _make_room(cache, whole, config.cache_gigabytes * 1e9)
        return file
    except OSError as error:
        raise DataError(f"data.remote.cache: {cache} cannot be used: {error}") from error


def cache_name(url: str) -> str:
    """What a shard is called in the cache, before the extension."""
    return hashlib.blake2b(url.encode(), digest_size=16).hexdigest()


def _fetch(url: str, partial: Path, config: RemoteConfig) -> None:
    if url.startswith(PIPE):
        command = _command(url, config)
        return _patiently(url, config, lambda: _run(command, partial, config.timeout))
    fs, path = _file_system(url, config)
    for _ in range(config.retries + 1):
        info = _patiently(url, config, lambda: _info(fs, path))
        if info["size"] is None:  # a server that does not say: what it sends is all there is
            return _patiently(url, config, lambda: partial.write_bytes(fs.cat_file(path)))
        _fetch_pieces(url, fs, path, info, partial, config)
        if _version(_patiently(url, config, lambda: _info(fs, path))) == _version(info):
            return partial.with_suffix(".version").unlink()
    raise DataError(f"shard {url} cannot be fetched: it changed {config.retries + 1} times while it was read")


def _fetch_pieces(
    url: str, fs: Any, path: str, info: dict[str, Any], partial: Path, config: RemoteConfig
) -> None:
    """Goes on where the last attempt came to, or from the start where that was of another version."""
    size, version, begun = info["size"], _version(info), partial.with_suffix(".version")
    with partial.open("ab") as file:
        if not begun.exists() or begun.read_text() != version:  # of a file that was there before
            file.truncate(0)
            file.seek(0)
            begun.write_text(version)
        while (start := file.tell()) < size:
            end = min(start + _PIECE, size)
            file.write(
                _patiently(url, config, lambda start=start, end=end: _piece(fs, path, start, end, size))
            )


def _info(fs: Any, path: str) -> dict[str, Any]:
    """What the source says of a file now."""
    if _is_hub(fs):  # says no more than the size unless asked to, and lists the whole folder for it
        return fs.info(path, expand_info=True, refresh=True)
    fs.invalidate_cache()
    return fs.info(path)


def _is_hub(fs: Any) -> bool:
    return fs.protocol == "hf"


def _version(info: dict[str, Any]) -> str:
    """Of a file that is fetched in pieces: they belong together where it is the same."""
    return repr([info["size"], *(str(info.get(name)) for name in _VERSION)])


def _piece(fs: Any, path: str, start: int, end: int, size: int) -> bytes:
    """Some of the bytes from start to end, at least one; more from a server that always sends everything."""
    options = {"cache_type": "none"} if _is_hub(fs) else {}  # else the hub's reads 5 MB ahead of each piece
    data = fs.cat_file(path, start=start, end=end, **options)
    if len(data) == size:
        return data[start:]
    if not 0 < len(data) <= end - start:
        raise OSError(f"expected bytes {start} to {end} of {size}, found {len(data)} bytes")
    return data


def _run(command: list[str], partial: Path, timeout: float) -> None:
    """Writes a command's output to a file; ends it where nothing comes for too long."""
    with partial.open("wb") as output, (partial.with_suffix(".stderr")).open("w+b") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        size = -1
        while process.poll() is None:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                if partial.stat().st_size == size:
                    process.kill()
                    process.wait()
                    raise OSError(f"no byte came for {timeout} s") from None
                size = partial.stat().st_size
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    partial.with_suffix(".stderr").unlink()
    if process.returncode:
        raise OSError(f"exit code {process.returncode}: {said[-1] if said else 'it said nothing'}")


def _patiently(url: str, config: RemoteConfig, attempt: Callable[[], Any]) -> Any:
    """The attempt's result, tried again with waits that double."""
    for number in range(config.retries + 1):
        try:
            return attempt()
        # Every one of fsspec's backends raises kinds of its own, which need not derive from OSError.
        except Exception as error:
            cause = _cause(error, url)
            if _is_gone(cause):
                raise DataError(f"shard {url} is not there, or not for us: {_said(cause)}") from error
            if number == config.retries:
                raise DataError(
                    f"shard {url} cannot be fetched: {number + 1} attempts in a row failed, the last with "
                    f"{_said(cause)}; it goes on from there when it is run again"
                ) from error
        time.sleep(min(config.wait * 2**number, _LONGEST_WAIT))
    raise AssertionError


def _cause(error: Exception, url: str) -> BaseException:
    """What went wrong: over HTTP, fsspec calls all that keeps it from a file's size a file not found."""
    return error.__cause__ if url.startswith("http") and error.__cause__ else error


def _is_gone(error: BaseException) -> bool:
    """Whether no retry helps."""
    for name in ("status", "code"):  # as aiohttp and as gcsfs call it
        if (status := getattr(error, name, None)) is not None:
            return status in _GONE
    forbidden = str(error).startswith("Forbidden:")  # gcsfs's 403
    return forbidden or isinstance(error, FileNotFoundError | PermissionError)


def _said(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _command(url: str, config: RemoteConfig) -> list[str]:
    try:
        words = shlex.split(url.removeprefix(PIPE))
    except ValueError as error:
        raise DataError(f"{url}: not readable as a command: {error}") from error
    if not words or words[0] not in config.pipe_commands:
        allowed = ", ".join(config.pipe_commands) or "none"
        raise DataError(
            f"{url}: commands run only where the config allows them by name: "
            f"data.remote.pipe_commands allows {allowed}"
        )
    return words


def _file_system(url: str, config: RemoteConfig) -> tuple[Any, str]:
    protocol = _check_package(url)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs is in our errors
    try:
        return fsspec.core.url_to_fs(url, **_timeouts(protocol, config.timeout))
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: {error}") from error


def _check_package(url: str) -> str:
    """A URL's protocol, where what fsspec needs for it is there."""
    protocol = url.partition("://")[0]
    package = _PACKAGES.get(protocol)
    if package and importlib.util.find_spec(package) is None:
        raise DataError(f"{url}: {protocol} needs the package {package}: pip install 'navit-clip[remote]'")
    return protocol


def _timeouts(protocol: str, seconds: float) -> dict[str, Any]:
    """How each backend is told to wait no longer, and to leave the retries to us."""
    if protocol in ("http", "https", "gs"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=seconds, sock_connect=seconds, sock_read=seconds)
        return {"requests_timeout": timeout} if protocol == "gs" else {"client_kwargs": {"timeout": timeout}}
    if protocol == "s3":
        retries = {"total_max_attempts": 1}
        return {"config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds, "retries": retries}}
    return {}


def _lock_of(partial: Path) -> Path:
    """The lock that whoever fetches a shard holds."""
    return partial.with_name(f"{partial.name[:2]}.lock")


def _make_room(cache: Path, newest: Path, limit: float) -> None:
    """Takes out what was used longest ago, whole or left half fetched, until the rest is within the limit."""
    found: list[tuple[float, int, Path]] = []
    for path in (*cache.glob("*.tar"), *cache.glob("*.partial")):
        with suppress(FileNotFoundError):  # it has become whole
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if path == newest:
            continue
        if path.suffix == ".partial":
            try:
                with locked(_lock_of(path), wait=False):
                    path.unlink(missing_ok=True)
                    path.with_suffix(".version").unlink(missing_ok=True)
            except BlockingIOError:
                continue  # It is being fetched.
        else:
            path.unlink(missing_ok=True)
        total -= size
