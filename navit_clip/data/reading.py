"""A place in the order -> a pair: read and drawn for; its image is yet to be decoded."""

from __future__ import annotations

import math
from functools import lru_cache

from navit_clip.data.config import DataConfig
from navit_clip.data.drawn import DrawnImage, draw_size
from navit_clip.data.draws import SampleRandom, draw_text
from navit_clip.data.dropping import draw_kept
from navit_clip.data.images import EncodedImage
from navit_clip.data.order import Place
from navit_clip.data.pairs import Pair
from navit_clip.data.samples import read_sample
from navit_clip.data.tar_index import OpenShards
from navit_clip.errors import SampleError
from navit_clip.tokenizer import Tokenizer

NUM_TEXTS = 4096
"""Texts whose tokens are remembered: names of classes and short captions, which repeat."""
LONGEST_TEXT = 256
"""Characters of one that is."""


class PairReader:
    """Reads pairs, each drawn for by (seed, visit, key) alone.

    Args:
        config: see there.
        shards: where places are.
        tokenizer: encodes captions.
        patch_size: in pixels.
        context_length: most tokens of a caption.
        seed: of all draws.
        blocks_per_epoch: by which places tell how many images have been seen.
    """

    def __init__(
        self,
        config: DataConfig,
        shards: OpenShards,
        tokenizer: Tokenizer,
        patch_size: int,
        context_length: int,
        seed: int,
        blocks_per_epoch: float,
    ):
        self._config = config
        self._shards = shards
        self._templates = tuple(config.templates)
        # Where captions are names of classes, few texts come again and again.
        self._ids = lambda text: tokenizer.encode([text], context_length)[0]
        self._known_ids = lru_cache(NUM_TEXTS)(self._ids)
        self._patch_size = patch_size
        self._seed = seed
        self._blocks_per_epoch = blocks_per_epoch

    def read(self, place: Place) -> Pair[DrawnImage] | SampleError:
        """The pair at a place, or what is wrong with it."""
        try:
            return self._read(place)
        except SampleError as error:
            return error.alone()

    def _read(self, place: Place) -> Pair[DrawnImage]:
        config, patch_size = self._config, self._patch_size
        sample = read_sample(
            self._shards[place.shard],
            place.entry,
            config.caption_key,
            other_captions=config.other_captions,
            max_bytes=config.max_bytes,
        )
        random = SampleRandom(self._seed, place.visit, sample.key)
        caption, text = draw_text(sample.captions, sample.chances, self._templates, random)
        encoded = EncodedImage(sample.image, config.max_pixels)
        # By its block's place in the sequence of all, not by a count: alike on all ranks and workers.
        images_seen = config.images_per_epoch * place.position / self._blocks_per_epoch
        size = draw_size(config, random, images_seen, encoded.height, encoded.width, patch_size)
        kept = draw_kept(math.prod(size.grid), size.drop_rate, random)
        ids = self._known_ids(text) if len(text) <= LONGEST_TEXT else self._ids(text)
        return Pair(sample.key, DrawnImage(encoded, size, kept, patch_size), caption, ids)
