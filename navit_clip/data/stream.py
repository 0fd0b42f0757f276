"""One worker's endless stream: order -> read -> draw -> wait for a batch -> decode into it.

A few samples at a time are read and drawn for, and a batch's images are decoded one after the other: what is
done for a sample beside decoding is much small code, which takes half the time where the core's caches still
have it from the sample before.

Bad samples are counted by cause and skipped; everything else that goes wrong is raised. After each batch
the stream's state is small and plain JSON, and a stream built from it gives, byte for byte, the batches
that this one would have given: the samples still waiting to be packed are named in it, and read again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypedDict

import numpy as np

from navit_clip.batch import Batch, lengths_of
from navit_clip.data.config import DataConfig, line_patience
from navit_clip.data.counts import SourceCounts, no_counts, total_counts
from navit_clip.data.drawn import DrawnImage
from navit_clip.data.draws import seed_of
from navit_clip.data.faults import Faults
from navit_clip.data.lines import LineBatch, Lines
from navit_clip.data.order import BlockOrder, Place, Walk, WalkState, first_walk
from navit_clip.data.packing import Packer
from navit_clip.data.pairs import Pair, batch_of
from navit_clip.data.patience import Patience, Stage
from navit_clip.data.reading import PairReader
from navit_clip.data.shards import Shard
from navit_clip.data.tar_index import OpenShards
from navit_clip.data.transport import NewBlock, private_block
from navit_clip.errors import SampleError
from navit_clip.tokenizer import Tokenizer

READ_AHEAD = 64
"""Samples that are read before they wait for a batch, or fewer where a block runs out."""
READ_AHEAD_BYTES = 16_000_000
"""Of their images, as they are held, after which there are fewer of them."""


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


class _Waiting(NamedTuple):
    """A pair that waits for a batch, and where it came from."""

    place: Place
    pair: Pair[DrawnImage]


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
        self._seed = seed
        self._new_block = new_block
        self._sources = [shard.source for shard in shards]
        self._shards = OpenShards(shards)
        self._sizes: dict[int, int] = {}
        order = block_order(config, shards, seed)
        self._walk = Walk(
            order,
            num_streams,
            config.shuffle_window,
            self._shard_size,
            self._shards.prepare,
            state["walk"],
        )
        self._reader = PairReader(
            config, self._shards, tokenizer, patch_size, context_length, seed, order.blocks_per_epoch
        )
        self._ahead: deque[tuple[Place, Pair[DrawnImage] | SampleError]] = deque()
        """What lies at the walk's next places."""
        self._lines: Lines[_Waiting] = Lines(self._new_packer, line_patience(config))
        self._faults = Faults()
        self._faults.counts.update(total_counts(state["counts"])["skipped"])
        self._patience = Patience(config, self._faults)
        self._counts: list[SourceCounts] = [
            {**counts, "skipped": Counter(counts["skipped"])} for counts in state["counts"]
        ]
        for *numbers, waited in state["waiting"]:
            place = Place(*numbers)
            self._counts_of(place)["read"] -= 1  # it is counted again
            self._let_wait(place, self._reader.read(place), waited)

    def __iter__(self) -> Iterator[Batch]:
        """Goes on without end.

        Raises:
            DataError: a shard has vanished, too many samples in a row are bad, or all of them are.
        """
        while True:
            if chosen := self._lines.choose():
                if batch := self._batch(chosen):
                    yield batch
            else:
                if not self._ahead:
                    self._read_ahead()
                place, pair = self._ahead.popleft()
                self._walk.go_on()
                self._let_wait(place, pair)

    def state(self) -> StreamState:
        """All that is needed to go on after the batch that came last."""
        return {
            "walk": self._walk.state(),
            "waiting": [[*waiting.place, waited] for waiting, waited in self._lines.waiting],
            "counts": [total_counts([counts]) for counts in self._counts],
        }

    def _new_packer(self) -> Packer[tuple[_Waiting, int]]:
        config = self._config
        return Packer(
            config.tokens_per_batch,
            config.lookahead,
            exact=config.exact_fill,
            max_items=config.max_images,
            max_text_tokens=config.max_text_tokens,
        )

    def _read_ahead(self) -> None:
        """Reads the next pairs: a number of them, or fewer where their images are large."""
        num_bytes = 0
        for place in self._walk.ahead(READ_AHEAD):
            pair = self._reader.read(place)
            self._ahead.append((place, pair))
            num_bytes += 0 if isinstance(pair, SampleError) else pair.image.num_bytes
            if num_bytes >= READ_AHEAD_BYTES:
                break

    def _let_wait(self, place: Place, pair: Pair[DrawnImage] | SampleError, waited: int = 0) -> None:
        """Lets a pair wait for a batch, or counts its fault."""
        self._counts_of(place)["read"] += 1
        try:
            if isinstance(pair, SampleError):
                raise pair
            pair.image.hold_less()
        except SampleError as error:
            self._count_fault(place, error, "reading")
        else:
            self._patience.good("reading")
            line = pair.image.size.num_tokens if self._config.resolution.same_in_batch else 0
            self._lines.add(line, _Waiting(place, pair), len(pair.image), len(pair.ids), waited)

    def _batch(self, chosen: LineBatch[_Waiting]) -> Batch | None:
        """Packs what was chosen; None if some of it is bad, and so what is left is to be chosen from anew."""
        pairs = [
            pair if length == len(pair.image) else self._cut_short(place, pair, length)
            for (place, pair), length in zip(chosen.items, chosen.lengths, strict=True)
        ]
        batch = batch_of(pairs, chosen.longest_wait, self._new_block)
        if any(pair.image.fault for pair in pairs):
            self._sort_out(chosen, pairs, batch)
            return None
        self._lines.remove(chosen)
        self._patience.good("decoding")
        for place, _ in chosen.items:
            self._counts_of(place)["used"] += 1
        return batch

    def _sort_out(self, chosen: LineBatch[_Waiting], pairs: Sequence[Pair[DrawnImage]], batch: Batch) -> None:
        """Counts what of a batch is bad; the others wait on, as the patches that they have become."""
        self._lines.remove_items(chosen, [number for number, pair in enumerate(pairs) if pair.image.fault])
        parts = batch.images.patches.split(lengths_of(batch.images.offsets))
        for (place, waiting), pair, pixels in zip(chosen.items, pairs, parts, strict=True):
            if pair.image.fault:
                self._count_fault(place, pair.image.fault, "decoding")
            else:
                self._patience.good("decoding")
                if pair is waiting:  # and was not cut short
                    pair.image.hold(pixels.numpy())

    def _cut_short(self, place: Place, pair: Pair[DrawnImage], length: int) -> Pair[DrawnImage]:
        """The pair by which a batch is filled exactly: it loses patches by a draw of its own."""
        random = np.random.default_rng(seed_of("fill", self._seed, place.visit, pair.key))
        return replace(pair, image=pair.image.thinned(length, random))

    def _shard_size(self, number: int) -> int:
        size = self._sizes[number] = len(self._shards[number])
        return size

    def _counts_of(self, place: Place) -> SourceCounts:
        return self._counts[self._sources[place.shard]]

    def _count_fault(self, place: Place, error: SampleError, stage: Stage) -> None:
        self._faults.add(self._shards[place.shard].key(place.entry), error)
        self._counts_of(place)["skipped"][error.cause] += 1
        all_opened = len(self._sizes) == len(self._sources)
        self._patience.bad(stage, place, sum(self._sizes.values()) if all_opened else None)
