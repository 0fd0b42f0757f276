"""One worker's endless stream: order -> read -> draw -> decode -> cut -> pack -> batch.

A few samples at a time are read and drawn for, and then decoded: what is done for a sample beside decoding is
much small code, which takes half the time where the core's caches still have it from the sample before.

Bad samples are counted by cause and skipped; everything else that goes wrong is raised. After each batch
the stream's state is small and plain JSON, and a stream built from it gives, byte for byte, the batches
that this one would have given: the samples still waiting to be packed are named in it, and read again.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Int64

from navit_clip.batch import Batch, Patches
from navit_clip.data.augmentation import View
from navit_clip.data.config import DataConfig, line_patience
from navit_clip.data.counts import SourceCounts, no_counts, total_counts
from navit_clip.data.draws import Random, SampleRandom, draw_text, seed_of
from navit_clip.data.dropping import draw_kept, num_kept
from navit_clip.data.faults import Faults
from navit_clip.data.images import EncodedImage
from navit_clip.data.lines import LineBatch, Lines
from navit_clip.data.order import BlockOrder, Place, Walk, WalkState, first_walk
from navit_clip.data.packing import Packer
from navit_clip.data.pairs import Pair, batch_of
from navit_clip.data.patches import cut_grid, thin
from navit_clip.data.samples import read_sample
from navit_clip.data.shards import Shard
from navit_clip.data.tar_index import OpenShards
from navit_clip.data.transport import NewBlock, private_block
from navit_clip.errors import DataError, SampleError
from navit_clip.tokenizer import Tokenizer

READ_AHEAD = 64
"""Samples that are read before they are decoded, or fewer where a block runs out."""
READ_AHEAD_BYTES = 16_000_000
"""Of their images, as they are held, after which there are fewer of them."""
NUM_TEXTS = 4096
"""Texts whose tokens are remembered: names of classes and short captions, which repeat."""
LONGEST_TEXT = 256
"""Characters of one that is."""


class DrawnSize(NamedTuple):
    """What training draws of how an image is seen."""

    num_tokens: int
    """Patches that it is allowed."""
    view: View
    grid: tuple[int, int]
    drop_rate: float

    @property
    def num_kept(self) -> int:
        """Patches that stay."""
        return num_kept(math.prod(self.grid), self.drop_rate)


def draw_size(
    config: DataConfig,
    random: Random,
    images_seen: float,
    height: int,
    width: int,
    patch_size: int,
) -> DrawnSize:
    """Draws for an image of so many pixels.

    Args:
        config: see there.
        random: the sample's own.
        images_seen: over all ranks, when this image comes.
        height: of the whole picture, in pixels.
        width: likewise.
        patch_size: in pixels.
    """
    num_tokens = config.resolution.draw_tokens(random, images_seen, patch_size)
    view = config.augmentation.draw_view(random)
    grid = config.resolution.grid(*view.size(height, width), patch_size, num_tokens)
    by_length = config.drop.kind == "by_length"
    share = config.length_share(math.prod(grid), patch_size) if by_length else 0.0
    return DrawnSize(num_tokens, view, grid, config.drop.draw_rate(random, images_seen, share))


class StreamState(TypedDict):
    """Where a stream is; plain JSON."""

    walk: WalkState
    waiting: list[list[int]]
    """[visit, position, shard, entry, batches let go by] of the samples that are read but in no batch yet, in
    the order of arrival."""
    counts: list[SourceCounts]
    """Of each source."""


def first_state(worker: int, num_sources: int) -> StreamState:
    """Where a global worker's stream starts."""
    return {"walk": first_walk(worker), "waiting": [], "counts": [no_counts() for _ in range(num_sources)]}


def block_order(config: DataConfig, shards: Sequence[Shard], seed: int) -> BlockOrder:
    """The order of a config's samples."""
    return BlockOrder(
        num_shards=len(shards),
        blocks_per_shard=config.blocks_per_shard,
        seed=seed,
        weights=[config.weights[shard.source] for shard in shards] if config.weights else (),
        resampled=config.resampled,
    )


class _Drawn(NamedTuple):
    """A sample that was read, with all that chance decides for it; its image is yet to be decoded."""

    key: str
    caption: str
    ids: list[int]
    image: EncodedImage
    size: DrawnSize
    kept: Int64[np.ndarray, " kept"]


class _Read(NamedTuple):
    """A pair, and where it came from."""

    place: Place
    pair: Pair


class Stream:
    """Batches without end, each followed by `state()`.

    Args:
        config: see there.
        shards: what `find_shards` found for it.
        tokenizer: encodes captions.
        patch_size: in pixels.
        context_length: most tokens of a caption.
        seed: of the order and of all draws.
        num_streams: how many streams, over all ranks and workers, share the samples.
        state: where to begin: `first_state(…)`, or what `state()` gave.
        new_block: gives the memory of each batch.
    """

    def __init__(
        self,
        config: DataConfig,
        shards: Sequence[Shard],
        tokenizer: Tokenizer,
        patch_size: int,
        context_length: int,
        seed: int,
        num_streams: int,
        state: StreamState,
        new_block: NewBlock = private_block,
    ):
        self._config = config
        # Where captions are names of classes, few texts come again and again.
        self._ids = lambda text: tokenizer.encode([text], context_length)[0]
        self._known_ids = lru_cache(NUM_TEXTS)(self._ids)
        self._patch_size = patch_size
        self._seed = seed
        self._new_block = new_block
        self._sources = [shard.source for shard in shards]
        self._shards = OpenShards(shards)
        self._sizes: dict[int, int] = {}
        order = block_order(config, shards, seed)
        self._blocks_per_epoch = order.blocks_per_epoch
        self._walk = Walk(
            order,
            num_streams,
            config.shuffle_window,
            self._shard_size,
            self._shards.prepare,
            state["walk"],
        )
        self._ahead: deque[_Drawn | SampleError] = deque()
        """What lies at the walk's next places."""
        self._lines: Lines[_Read] = Lines(self._new_packer, line_patience(config))
        self._faults = Faults()
        self._faults.counts.update(total_counts(state["counts"])["skipped"])
        self._counts: list[SourceCounts] = [
            {**counts, "skipped": Counter(counts["skipped"])} for counts in state["counts"]
        ]
        self._bad_run: set[tuple[int, int]] = set()
        self._num_bad_run = 0
        for *place, waited in state["waiting"]:
            self._counts_of(Place(*place))["read"] -= 1  # it is counted again
            self._take(Place(*place), self._drawn(Place(*place)), waited)

    def __iter__(self) -> Iterator[Batch]:
        """Goes on without end.

        Raises:
            DataError: a shard has vanished, too many samples in a row are bad, or all of them are.
        """
        while True:
            if batch := self._lines.cut():
                yield self._batch(batch)
            else:
                if not self._ahead:
                    self._read_ahead()
                self._take(next(self._walk), self._ahead.popleft())

    def state(self) -> StreamState:
        """All that is needed to go on after the batch that came last."""
        return {
            "walk": self._walk.state(),
            "waiting": [[*read.place, waited] for read, waited in self._lines.waiting],
            "counts": [total_counts([counts]) for counts in self._counts],
        }

    def _new_packer(self) -> Packer[tuple[_Read, int]]:
        config = self._config
        return Packer(
            config.tokens_per_batch,
            config.lookahead,
            exact=config.exact_fill,
            max_items=config.max_images,
            max_text_tokens=config.max_text_tokens,
        )

    def _batch(self, batch: LineBatch[_Read]) -> Batch:
        """Packs what was chosen; the pair that was cut short loses patches by a draw of its own."""
        pairs = []
        for (place, pair), length in zip(batch.items, batch.lengths, strict=True):
            if length < len(pair.patches):
                random = np.random.default_rng(seed_of("fill", self._seed, place.visit, pair.key))
                pair = replace(pair, patches=thin(pair.patches, length, random))
            pairs.append(pair)
            self._counts_of(place)["used"] += 1
        return batch_of(pairs, batch.longest_wait, self._new_block)

    def _read_ahead(self) -> None:
        """Reads the next samples: a number of them, or fewer where their images are large."""
        num_bytes = 0
        for place in self._walk.ahead(READ_AHEAD):
            sample = self._drawn(place)
            self._ahead.append(sample)
            num_bytes += 0 if isinstance(sample, SampleError) else sample.image.num_bytes
            if num_bytes >= READ_AHEAD_BYTES:
                break

    def _take(self, place: Place, sample: _Drawn | SampleError, waited: int = 0) -> None:
        """Decodes a sample and lets it wait for a batch, or counts its fault."""
        self._counts_of(place)["read"] += 1
        try:
            if isinstance(sample, SampleError):
                raise sample
            pair = Pair(sample.key, self._patches(sample), sample.caption, sample.ids)
        except SampleError as error:
            self._count_fault(place, error)
        else:
            self._bad_run.clear()
            self._num_bad_run = 0
            line = sample.size.num_tokens if self._config.resolution.same_in_batch else 0
            self._lines.add(line, _Read(place, pair), len(pair.patches), len(pair.ids), waited)

    def _drawn(self, place: Place) -> _Drawn | SampleError:
        """Reads a sample and draws for it; gives what is wrong with it where it is bad."""
        try:
            return self._read_and_draw(place)
        except SampleError as error:
            return SampleError(error.cause, error.detail)  # without its frames, which hold what was read

    def _read_and_draw(self, place: Place) -> _Drawn:
        config, patch_size = self._config, self._patch_size
        # By its block's place in the sequence of all, not by a count: alike on all ranks and workers.
        images_seen = config.images_per_epoch * place.position / self._blocks_per_epoch
        sample = read_sample(
            self._shards[place.shard],
            place.entry,
            config.caption_key,
            other_captions=config.other_captions,
            max_bytes=config.max_bytes,
        )
        random = SampleRandom(self._seed, place.visit, sample.key)
        caption, text = draw_text(sample.captions, sample.chances, tuple(config.templates), random)
        image = EncodedImage(sample.image, config.max_pixels)
        size = draw_size(config, random, images_seen, image.height, image.width, patch_size)
        kept = draw_kept(math.prod(size.grid), size.drop_rate, random)
        ids = self._known_ids(text) if len(text) <= LONGEST_TEXT else self._ids(text)
        return _Drawn(sample.key, caption, ids, image, size, kept)

    def _patches(self, sample: _Drawn) -> Patches:
        """Decodes and cuts; raises SampleError where the image is bad."""
        grid, view = sample.size.grid, sample.size.view
        # Of the whole picture, as many pixels as give the crop enough.
        height, width = (math.ceil(side * self._patch_size / view.scale) for side in grid)
        image = sample.image.decode(at_least=(height, width))
        return cut_grid(view.of(image), self._patch_size, grid, sample.kept)

    def _shard_size(self, number: int) -> int:
        size = self._sizes[number] = len(self._shards[number])
        return size

    def _counts_of(self, place: Place) -> SourceCounts:
        return self._counts[self._sources[place.shard]]

    def _count_fault(self, place: Place, error: SampleError) -> None:
        self._faults.add(self._shards[place.shard].key(place.entry), error)
        self._counts_of(place)["skipped"][error.cause] += 1
        self._num_bad_run += 1
        self._bad_run.add((place.shard, place.entry))
        if self._num_bad_run >= self._config.max_consecutive_faults:
            raise DataError(f"{self._num_bad_run} bad samples in a row; {self._faults.summary()}")
        if 0 < self._config.max_faults <= self._faults.total:
            raise DataError(f"max_faults reached: {self._faults.summary()}")
        # A worker meets every sample of the data set in time, so this ends whatever the number of workers.
        if len(self._sizes) == len(self._sources) and len(self._bad_run) == sum(self._sizes.values()):
            raise DataError(f"every sample of the shards is bad; {self._faults.summary()}")
