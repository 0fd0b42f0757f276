"""What a model is beside its weights: its tokenizer, its preparation of images, its settings -> a hash."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from eval.embed import evaluating
from eval.image_config import ImageConfig
from eval.model import JudgedModel
from navit_clip.tokenizer import PROBES

PROBE_SIZE = (120, 200)
DIGITS = 4
"""Of vectors that count: other numbers of threads may move those after them."""


def fingerprint(model: JudgedModel, config: ImageConfig) -> str:
    """A hash of what the model makes of some captions and of one picture.

    Equal weights do not yet make equal vectors: heads, activations, positions, a tokenizer's vocabulary and
    an image processor's mean are not among them. All of these, whatever the model, show in what comes out.

    Args:
        model: which.
        config: how the picture is shown to it.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (*PROBE_SIZE, 3), dtype=np.uint8)
    preparation = model.preparation(config)
    image, _ = preparation.prepare(pixels, "probe")
    ids = model.tokenize(PROBES)
    with evaluating(model):
        vectors = torch.cat([model.encode_images(preparation.pack([image])), model.encode_captions(ids)])
    rounded = (10**DIGITS * vectors.double().cpu()).round().to(torch.int32)
    return hashlib.blake2b(repr((ids, rounded.tolist())).encode(), digest_size=16).hexdigest()
