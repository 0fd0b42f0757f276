"""Every sample of shards, read and decoded in full; each fault by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from navit_clip.data.images import decode_image
from navit_clip.data.samples import read_sample
from navit_clip.data.shards import Shard
from navit_clip.data.tar_index import OpenShard
from navit_clip.errors import DataError, SampleError
from navit_clip.shards.manifest import FILE_NAME, Manifest, read_manifest, sha256_of


class Fault(NamedTuple):
    """What is wrong with a sample, or with its shard."""

    key: str
    cause: str
    detail: str


class Checked(NamedTuple):
    """What a shard has."""

    samples: int
    """Good ones."""
    faults: list[Fault]


def validate_shards(
    shards: list[Shard],
    caption_key: str | None,
    labels: bool,
    workers: int,
    report: Callable[[Fault], None],
) -> Checked:
    """Reads and decodes every sample, and compares shards with the manifest beside them, where there is one.

    Args:
        shards: what to check.
        caption_key: where captions are; without one, samples need none.
        labels: whether samples need a label.
        workers: processes, each at a shard of its own.
        report: called with each fault as it is found.

    Raises:
        DataError: a manifest cannot be read.
    """
    check = partial(_check, caption_key=caption_key, labels=labels)
    manifests = _manifests(shards)
    checksums = {
        str(folder / record.name): record.sha256
        for folder, manifest in manifests.items()
        for record in manifest.shards
    }
    total, faults = 0, []
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(unit="samples", disable=None))
        several: Callable[..., Iterator[Checked]] = map
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            several = stack.enter_context(pool).map
        for checked in several(check, shards, [checksums.get(shard.path) for shard in shards]):
            total += checked.samples
            faults += checked.faults
            for fault in checked.faults:
                report(fault)
            bar.update(checked.samples + len(checked.faults))
    for fault in _incomplete(shards, manifests):
        report(fault)
        faults.append(fault)
    return Checked(total, faults)


def _check(shard: Shard, checksum: str | None, caption_key: str | None, labels: bool) -> Checked:
    try:
        opened = OpenShard(shard)
    except DataError as error:
        return Checked(0, [Fault(shard.name, "unreadable shard", str(error))])
    good, faults = 0, []
    if checksum is not None and sha256_of(Path(shard.path)) != checksum:
        faults.append(Fault(shard.name, "wrong checksum", f"{shard.path} is not the shard that was built"))
    for index in range(len(opened)):
        try:
            decode_image(read_sample(opened, index, caption_key, labels).image)
            good += 1
        except SampleError as error:
            faults.append(Fault(opened.key(index), error.cause, error.detail))
    opened.close()
    return Checked(good, faults)


def _manifests(shards: list[Shard]) -> dict[Path, Manifest]:
    """Those beside shards, by folder."""
    folders = sorted({Path(shard.path).parent for shard in shards if shard.remote is None})
    found = {folder: read_manifest(folder) for folder in folders}
    return {folder: manifest for folder, manifest in found.items() if manifest is not None}


def _incomplete(shards: list[Shard], manifests: dict[Path, Manifest]) -> Iterator[Fault]:
    """Builds that were not finished, and shards that only a manifest has, or only its folder."""
    for folder, manifest in manifests.items():
        if not manifest.complete:
            detail = f"{folder / FILE_NAME} says that shards are yet to come; run `shards build` again"
            yield Fault(str(folder), "unfinished build", detail)
        for record in manifest.shards:
            if not (folder / record.name).exists():
                detail = f"{folder / record.name} is in {FILE_NAME} and not there"
                yield Fault(record.name.removesuffix(".tar"), "missing shard", detail)
        known = {record.name for record in manifest.shards}
        for shard in shards:
            path = Path(shard.path)
            if shard.remote is None and path.parent == folder and path.name not in known:
                detail = f"{path} is no shard of {FILE_NAME} beside it"
                yield Fault(shard.name, "not in the manifest", detail)
