"""Members of a shard -> Sample: which file is the image, where the captions are, what the label is.

Captions come from `key.txt`, one a line (caption key "txt"), or from a key of `key.json` (caption key
"json.KEY", or "json.KEY.KEY" for one inside it): a string, a list of strings, or a mapping to strings, such
as translations by language. The label is the integer in `key.cls`. What a sample lacks is a SampleError;
`read_samples` counts these and goes on.

So shards of img2dataset and DataComp (jpg, txt, json) are read, and those of CLIP_benchmark (webp, cls, txt).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import orjson

from navit_clip.batch import Sample
from navit_clip.data.faults import Faults
from navit_clip.data.remote import RemoteConfig
from navit_clip.data.shards import find_shards
from navit_clip.data.tar_index import MAX_BYTES, OpenShard
from navit_clip.errors import ConfigError, DataError, SampleError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_CAPTION_LENGTH = 20_000
"""In characters; what is longer is no caption, and takes a tokenizer long."""

logger = logging.getLogger(__name__)


def read_samples(
    shards: Sequence[str],
    caption_key: str | None = None,
    labels: bool = False,
    faults: Faults | None = None,
    rank: int = 0,
    world_size: int = 1,
    remote: RemoteConfig | None = None,
) -> Iterator[Sample]:
    """One pass over shards, in the order of `find_shards` and of the tars.

    Args:
        shards: patterns, see `find_shards`.
        caption_key: where captions are; without one, samples have none and need none.
        labels: whether samples have a label, and need one.
        faults: counts the samples that were skipped, for callers that report them; a summary is logged
            in any case.
        rank: which share of the samples to read: numbers rank, rank + world_size, ...
        world_size: the number of shares.
        remote: how to fetch shards from elsewhere.

    Raises:
        DataError: no shard is found, or no sample of all is good; a share may have none.
        ConfigError: the caption key is not of a known form.
    """
    faults = Faults() if faults is None else faults
    num_good = num_before = 0
    check_caption_key(caption_key)
    for shard in find_shards(shards, remote):
        opened = OpenShard(shard)
        for index in range((rank - num_before) % world_size, len(opened), world_size):
            try:
                sample = read_sample(opened, index, caption_key, labels)
            except SampleError as error:
                faults.add(opened.key(index), error)
            else:
                num_good += 1
                yield sample
        num_before += len(opened)
        opened.close()
    if not num_good and world_size == 1:
        raise DataError(f"{', '.join(shards)}: no good sample; {faults.summary()}")
    if faults.total:
        logger.warning("%d samples read; %s", num_good, faults.summary())


def read_sample(
    shard: OpenShard,
    index: int,
    caption_key: str | None,
    labels: bool = False,
    other_captions: Mapping[str, float] = MappingProxyType({}),
    max_bytes: int = MAX_BYTES,
) -> Sample:
    """Reads one sample, still encoded, and only those of its files that are needed.

    Args:
        shard: where it is.
        index: its number there.
        caption_key: where captions are; without one, it has none and needs none.
        labels: whether it has a label, and needs one.
        other_captions: further keys of captions, with the chance of each where `caption_key` has 1; of all
            these keys, a sample needs only one.
        max_bytes: most bytes of any of its files, checked before they are read.

    Raises:
        SampleError: it has no image, or too large a file; no, empty, overlong or undecodable captions or
            label where these are asked for.
    """
    caption_keys = {} if caption_key is None else {caption_key: 1.0, **other_captions}
    members = shard.read(index, _wanted(tuple(caption_keys), labels).__contains__, max_bytes)
    key = shard.key(index)
    image = next((members[extension] for extension in IMAGE_EXTENSIONS if extension in members), None)
    if image is None:
        raise SampleError("no image", f"{key}: none of its files is called .{', .'.join(IMAGE_EXTENSIONS)}")
    captions, chances = _captions(key, members, caption_keys)
    return Sample(key, image, captions, chances, _label(key, members) if labels else None)


def read_captions(shard: OpenShard, index: int, caption_key: str) -> tuple[str, ...]:
    """The captions of one sample alone, whether or not it has an image.

    Raises:
        SampleError: no, empty, overlong or undecodable captions.
    """
    members = shard.read(index, _wanted_captions((caption_key,)).__contains__)
    return _captions_at(shard.key(index), members, caption_key)


@cache
def _wanted(caption_keys: tuple[str, ...], labels: bool) -> frozenset[str]:
    """The extensions of the files that a sample is read from."""
    return frozenset((*IMAGE_EXTENSIONS, *_wanted_captions(caption_keys), *(["cls"] if labels else [])))


def _wanted_captions(caption_keys: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in caption_keys)


def check_caption_key(caption_key: str | None) -> None:
    """Raises ConfigError unless the caption key is "txt", "json.KEY" or None."""
    if caption_key in (None, "txt"):
        return
    kind, _, name = caption_key.partition(".")
    if kind != "json" or not name:
        raise ConfigError(f"caption_key: expected 'txt' or 'json.KEY', found {caption_key!r}")


def _captions(
    key: str, members: Mapping[str, bytes], caption_keys: Mapping[str, float]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Captions, and the chance of each to be drawn; no chances where all are alike."""
    if len(caption_keys) == 1:
        (caption_key,) = caption_keys
        return _captions_at(key, members, caption_key), ()
    found: dict[str, tuple[str, ...]] = {}
    faults: list[SampleError] = []
    for caption_key in caption_keys:
        try:
            found[caption_key] = _captions_at(key, members, caption_key)
        except SampleError as error:
            faults.append(error)
    if faults and not found:
        raise faults[0]
    captions = tuple(caption for at_key in found.values() for caption in at_key)
    total = sum(caption_keys[name] for name in found)
    shares = ((caption_keys[name] / total / len(at_key), len(at_key)) for name, at_key in found.items())
    return captions, tuple(share for share, count in shares for _ in range(count))


def _captions_at(key: str, members: Mapping[str, bytes], caption_key: str) -> tuple[str, ...]:
    kind, _, name = caption_key.partition(".")
    if kind not in members:
        raise SampleError("no caption", f"{key}: has no .{kind} file")
    data = members[kind]
    lines = _json_strings(key, data, name) if kind == "json" else _text(key, data).splitlines()
    captions = tuple(stripped for line in lines if (stripped := line.strip()))
    if not captions:
        raise SampleError("empty caption", f"{key}: nothing but white space in {caption_key}")
    if (longest := max(map(len, captions))) > MAX_CAPTION_LENGTH:
        raise SampleError(
            "overlong caption",
            f"{key}: {caption_key} has one of {longest} characters, over {MAX_CAPTION_LENGTH}",
        )
    return captions


def _text(key: str, data: bytes) -> str:
    return _decode(key, data, "undecodable caption")


def _json_strings(key: str, data: bytes, name: str) -> list[str]:
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError:
        # It takes a fifth of json's time, but no NaN, which Python writes, and no byte order mark.
        try:
            record = json.loads(_text(key, data))
        except (ValueError, RecursionError) as error:
            raise SampleError("undecodable caption", f"{key}: the .json is not JSON: {error}") from error
    found = _inside(record, name)
    if found is None:
        raise SampleError("no caption", f"{key}: the .json has no key {name!r}")
    if isinstance(found, dict):
        found = list(found.values())
    strings = found if isinstance(found, list) else [found]
    if not all(isinstance(string, str) for string in strings):
        raise SampleError("undecodable caption", f"{key}: {name!r} in the .json is neither text nor texts")
    try:
        "".join(strings).encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which is no text
        raise SampleError("undecodable caption", f"{key}: {name!r} in the .json: {error}") from error
    return strings


def _inside(record: Any, name: str) -> Any:
    """The value of a key, or of a key inside a key's value where the name has dots; None without one."""
    if not isinstance(record, dict):
        return None
    if name in record:
        return record[name]
    outer, dot, inner = name.partition(".")
    return _inside(record.get(outer), inner) if dot else None


def _label(key: str, members: Mapping[str, bytes]) -> int:
    if "cls" not in members:
        raise SampleError("no label", f"{key}: has no .cls file")
    text = _decode(key, members["cls"], "undecodable label")
    try:
        return int(text)
    except ValueError as error:
        raise SampleError("undecodable label", f"{key}: expected an integer, found {text[:50]!r}") from error


def _decode(key: str, data: bytes, cause: str) -> str:
    try:
        # Without the byte order mark that some editors put first; Python's own codec for this is slow.
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise SampleError(cause, f"{key}: not UTF-8: {error}") from error
