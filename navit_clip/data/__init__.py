"""Shards -> samples -> resize -> patches -> packing -> loader."""

from navit_clip.data.faults import Faults
from navit_clip.data.images import decode_image
from navit_clip.data.patches import cut_patches, image_patches
from navit_clip.data.resize import grid_for, resize, tokens_of_side
from navit_clip.data.samples import read_samples
from navit_clip.data.shards import find_shards, write_shard

__all__ = [
    "Faults",
    "cut_patches",
    "decode_image",
    "find_shards",
    "grid_for",
    "image_patches",
    "read_samples",
    "resize",
    "tokens_of_side",
    "write_shard",
]
