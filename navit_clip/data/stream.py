"""One worker's endless stream: order -> read -> draw -> decode -> cut -> pack -> batch.

Bad samples are counted by cause and skipped; everything else that goes wrong is raised. After each batch
the stream's state is small and plain JSON, and a stream built from it gives, byte for byte, the batches
that this one would have given: the samples still waiting to be packed are named in it, and read again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from navit_clip.batch import Batch
from navit_clip.data.augmentation import AugmentationConfig
from navit_clip.data.draws import (
    DropConfig,
    ResolutionConfig,
    check_template,
    draw_text,
    sample_random,
)
from navit_clip.data.faults import Faults
from navit_clip.data.images import EncodedImage
from navit_clip.data.order import BlockOrder, Place, Walk, WalkState, first_walk
from navit_clip.data.packing import Packer
from navit_clip.data.pairs import Pair, batch_of
from navit_clip.data.patches import cut_grid
from navit_clip.data.resize import grid_for, tokens_of_side
from navit_clip.data.samples import check_caption_key, read_sample
from navit_clip.data.shards import Shard
from navit_clip.data.tar_index import OpenShards
from navit_clip.errors import ConfigError, DataError, SampleError
from navit_clip.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how it becomes batches."""

    shards: list[str]
    """Patterns of tar files: paths, braces, globs, folders."""
    caption_key: str = "txt"
    """Where captions are: "txt" (one a line) or "json.KEY" (a string or a list of strings)."""
    templates: list[str] = field(default_factory=lambda: ["{}"])
    """Each drawn caption is put into one of these, drawn too, where it has {}."""
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)
    """Sizes that images are resized to."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random crops and mirroring."""
    drop: DropConfig = field(default_factory=DropConfig)
    """Patches that are left out."""
    tokens_per_batch: int = 4096
    """Budget of one rank's micro-step, in image tokens."""
    lookahead: int = 64
    """Images that may wait for a batch with a gap of their size; none waits for more batches than this."""
    blocks_per_shard: int = 8
    """Pieces of consecutive samples that a shard is cut into, to be dealt and shuffled."""
    shuffle_window: int = 8
    """Blocks that a worker draws samples from at a time."""
    max_consecutive_faults: int = 1000
    """Bad samples in a row after which a worker gives up."""
    num_workers: int = 2
    """Processes a rank that read, decode and pack; 0 does it in the training process."""
    prefetch: int = 2
    """Batches that each worker process has ready in advance."""

    def __post_init__(self):
        check_caption_key(self.caption_key)
        for template in self.templates:
            check_template(template)
        if not self.templates:
            raise ConfigError("templates: expected at least one, found none")
        least = {"tokens_per_batch": 1, "lookahead": 1, "blocks_per_shard": 1, "shuffle_window": 1}
        least |= {"max_consecutive_faults": 1, "num_workers": 0, "prefetch": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name}: expected at least {smallest}, found {getattr(self, name)}")

    def check_budget(self, patch_size: int) -> None:
        """Raises ConfigError where an image of the largest side would not fit a batch."""
        most = self.drop.num_kept(tokens_of_side(self.resolution.max_side, patch_size))
        if most > self.tokens_per_batch:
            raise ConfigError(
                f"tokens_per_batch: {self.tokens_per_batch} is less than the {most} patches of one image at "
                f"resolution.max_side {self.resolution.max_side}, patch size {patch_size}, "
                f"drop.rate {self.drop.rate}"
            )


class StreamState(TypedDict):
    """Where a stream is; plain JSON."""

    walk: WalkState
    waiting: list[list[int]]
    """[epoch, shard, entry] of the samples that are read but in no batch yet, in the order of arrival."""
    read: int
    """Samples taken from shards, good and bad."""
    used: int
    """Samples that went into batches."""
    skipped: dict[str, int]
    """Bad samples by cause."""


def first_state(worker: int) -> StreamState:
    """Where a global worker's stream starts."""
    return {"walk": first_walk(worker), "waiting": [], "read": 0, "used": 0, "skipped": {}}


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
        state: where to begin: `first_state(worker)`, or what `state()` gave.
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
    ):
        self._config = config
        self._tokenizer = tokenizer
        self._patch_size = patch_size
        self._context_length = context_length
        self._seed = seed
        self._num_shards = len(shards)
        self._shards = OpenShards(shards)
        self._sizes: dict[int, int] = {}
        self._walk = Walk(
            BlockOrder(num_shards=len(shards), blocks_per_shard=config.blocks_per_shard, seed=seed),
            num_streams,
            config.shuffle_window,
            self._shard_size,
            state["walk"],
        )
        self._packer: Packer[tuple[Place, Pair]] = Packer(config.tokens_per_batch, config.lookahead)
        self._faults = Faults()
        self._faults.counts.update(state["skipped"])
        self._bad_run: set[tuple[int, int]] = set()
        self._num_bad_run = 0
        self._num_read = state["read"] - len(state["waiting"])
        self._num_used = state["used"]
        for place in state["waiting"]:
            self._take(Place(*place))

    def __iter__(self) -> Iterator[Batch]:
        """Goes on without end.

        Raises:
            DataError: a shard has vanished, too many samples in a row are bad, or all of them are.
        """
        while True:
            while not self._packer.ready:
                self._take(next(self._walk))
            pairs = [pair for _, pair in self._packer.cut()]
            self._num_used += len(pairs)
            yield batch_of(pairs, self._tokenizer, self._context_length)

    def state(self) -> StreamState:
        """All that is needed to go on after the batch that came last."""
        return {
            "walk": self._walk.state(),
            "waiting": [list(place) for place, _ in self._packer.waiting],
            "read": self._num_read,
            "used": self._num_used,
            "skipped": dict(self._faults.counts),
        }

    def _take(self, place: Place) -> None:
        """Reads a sample and lets it wait for a batch, or counts its fault."""
        self._num_read += 1
        try:
            pair = self._pair(place)
        except SampleError as error:
            self._count_fault(place, error)
        else:
            self._bad_run.clear()
            self._num_bad_run = 0
            self._packer.add((place, pair), len(pair.patches))

    def _pair(self, place: Place) -> Pair:
        """Reads, draws, decodes and cuts; raises SampleError where the sample is bad."""
        config = self._config
        sample = read_sample(self._shards[place.shard], place.entry, config.caption_key, labels=False)
        random = sample_random(self._seed, place.epoch, sample.key)
        caption, text = draw_text(sample.captions, tuple(config.templates), random)
        num_tokens = tokens_of_side(config.resolution.draw_side(random), self._patch_size)
        view = config.augmentation.draw_view(random)
        encoded = EncodedImage(sample.image)
        rows, columns = grid_for(*view.size(encoded.height, encoded.width), self._patch_size, num_tokens)
        kept = config.drop.draw_kept(rows * columns, random)
        # Of the whole picture, as many pixels as give the crop enough.
        height, width = (math.ceil(side * self._patch_size / view.scale) for side in (rows, columns))
        image = encoded.decode(at_least=(height, width))
        patches = cut_grid(view.of(image), self._patch_size, (rows, columns), kept)
        return Pair(sample.key, patches, caption, text)

    def _shard_size(self, number: int) -> int:
        size = self._sizes[number] = len(self._shards[number])
        return size

    def _count_fault(self, place: Place, error: SampleError) -> None:
        self._faults.add(self._shards[place.shard].key(place.entry), error)
        self._num_bad_run += 1
        self._bad_run.add((place.shard, place.entry))
        if self._num_bad_run >= self._config.max_consecutive_faults:
            raise DataError(f"{self._num_bad_run} bad samples in a row; {self._faults.summary()}")
        # A worker meets every sample of the data set in time, so this ends whatever the number of workers.
        if len(self._sizes) == self._num_shards and len(self._bad_run) == sum(self._sizes.values()):
            raise DataError(f"every sample of the shards is bad; {self._faults.summary()}")
