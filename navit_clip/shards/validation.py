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
from navit_clip.shards.manifest import FILE_NAME, read_manifest, sha256_of


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
    """
    check = partial(_check, caption_key=caption_key, labels=labels)
    total, faults = 0, []
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(unit="samples", disable=None))
        several: Callable[..., Iterator[Checked]] = map
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            several = stack.enter_context(pool).map
        for checked in several(check, shards):
            total += checked.samples
            faults += checked.faults
            for fault in checked.faults:
                report(fault)
            bar.update(checked.samples + len(checked.faults))
    for fault in _unfinished(shards):
        report(fault)
        faults.append(fault)
    return Checked(total, faults)


def _check(shard: Shard, caption_key: str | None, labels: bool) -> Checked:
    good, faults = 0, _against_manifest(shard)
    try:
        opened = OpenShard(shard)
    except DataError as error:
        return Checked(0, [*faults, Fault(shard.name, "unreadable shard", str(error))])
    for index in range(len(opened)):
        try:
            decode_image(read_sample(opened, index, caption_key, labels).image)
            good += 1
        except SampleError as error:
            faults.append(Fault(opened.key(index), error.cause, error.detail))
    opened.close()
    return Checked(good, faults)


def _unfinished(shards: list[Shard]) -> Iterator[Fault]:
    """Builds that were not finished, and shards that a manifest has and its folder has not."""
    for folder in sorted({Path(shard.path).parent for shard in shards if shard.remote is None}):
        if (manifest := read_manifest(folder)) is None:
            continue
        if not manifest.complete:
            detail = f"{folder / FILE_NAME} says that shards are yet to come; run `shards build` again"
            yield Fault(str(folder), "unfinished build", detail)
        for record in manifest.shards:
            path = folder / record.name
            if not path.exists():
                yield Fault(path.stem, "missing shard", f"{path} is in manifest.json and not there")


def _against_manifest(shard: Shard) -> list[Fault]:
    if shard.remote is not None or (manifest := read_manifest(Path(shard.path).parent)) is None:
        return []
    path = Path(shard.path)
    for record in manifest.shards:
        if record.name == path.name:
            if path.is_file() and sha256_of(path) != record.sha256:
                return [Fault(shard.name, "wrong checksum", f"{path} is not the shard that was built")]
            return []
    return [Fault(shard.name, "not in the manifest", f"{path} is no shard of manifest.json beside it")]
