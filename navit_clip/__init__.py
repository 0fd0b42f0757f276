"""NaViT-CLIP: packed native-resolution image-text pretraining.

    shards -> samples -> resize -> patches -> packing -> two towers -> embeddings -> loss

The names below are the public API. Importing them loads neither deepspeed nor webdataset nor transformers.
"""

from navit_clip.batch import Batch, Captions, Embeddings, PackedImages, Patches, Sample
from navit_clip.config import load_config
from navit_clip.data import DataConfig, TrainLoader, image_patches, read_samples
from navit_clip.distributed import World
from navit_clip.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    ExportError,
    NavitClipError,
    SampleError,
)
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model import ClipConfig, choose_backend, packed_attention
from navit_clip.pretrained import NavitClip
from navit_clip.tokenizer import load_tokenizer, train_tokenizer
from navit_clip.weights import load_model, save_model

__all__ = [
    "Batch",
    "Captions",
    "CheckpointError",
    "ClipConfig",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DivergenceError",
    "Embeddings",
    "ExportError",
    "LossConfig",
    "NavitClip",
    "NavitClipError",
    "PackedImages",
    "Patches",
    "Sample",
    "SampleError",
    "TrainLoader",
    "World",
    "choose_backend",
    "contrastive_loss",
    "image_patches",
    "load_config",
    "load_model",
    "load_tokenizer",
    "packed_attention",
    "read_samples",
    "save_model",
    "train_tokenizer",
]
