"""Shards -> samples -> resize -> patches -> packing -> loader."""

from navit_clip.data.config import DataConfig
from navit_clip.data.dealing import deal_again
from navit_clip.data.dropping import DropConfig
from navit_clip.data.faults import Faults
from navit_clip.data.images import decode_image
from navit_clip.data.loader import LoaderState, TrainLoader
from navit_clip.data.packing import Packer
from navit_clip.data.patches import cut_patches, image_patches
from navit_clip.data.resize import grid_for, resize, tokens_of_side
from navit_clip.data.resolution import ResolutionConfig
from navit_clip.data.samples import read_samples
from navit_clip.data.shards import find_shards, write_shard
from navit_clip.data.validation import ValidationDataConfig, validation_batches

__all__ = [
    "DataConfig",
    "DropConfig",
    "Faults",
    "LoaderState",
    "Packer",
    "ResolutionConfig",
    "TrainLoader",
    "ValidationDataConfig",
    "cut_patches",
    "deal_again",
    "decode_image",
    "find_shards",
    "grid_for",
    "image_patches",
    "read_samples",
    "resize",
    "tokens_of_side",
    "validation_batches",
    "write_shard",
]
