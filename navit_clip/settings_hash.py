"""What makes a model beside its weights: its settings and its tokenizer -> a hash."""

from __future__ import annotations

import hashlib
from dataclasses import asdict

from navit_clip.pretrained import NavitClip
from navit_clip.tokenizer import PROBES


def settings_hash(model: NavitClip) -> str:
    """A hash of the towers' settings and of the token ids of some captions.

    With equal weights, these settle what our towers make of an image or caption. No vector is part of it:
    those move in their last digits with the device and the number of threads.
    """
    config = model.towers.config
    ids = model.tokenizer.encode(PROBES, config.text.context_length)
    return hashlib.blake2b(repr((asdict(config), ids)).encode(), digest_size=16).hexdigest()
