"""Text towers of the same shapes: ours on packed captions, the peers' on rows of 64 tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.contender import Contender, Machine
from benchmarks.peers.workload import CONTEXT_LENGTH, VOCABULARY, Size
from navit_clip.batch import Captions
from navit_clip.model import TextTower, TextTowerConfig
from navit_clip.model.initialization import initialize

PADDED = f"{CONTEXT_LENGTH} a row"


def text_towers(size: Size, captions: Sequence[list[int]]) -> list[Contender]:
    """Everyone, on these captions; peers see them padded."""
    return [
        Contender("packed", "navit_clip", partial(_packed, size, captions)),
        Contender(f"open_clip, {PADDED}", "open_clip", partial(_open_clip, size, captions)),
        Contender(f"HF Siglip2, {PADDED}", "transformers", partial(_siglip2, size, captions)),
    ]


def tower_config(size: Size) -> TextTowerConfig:
    """Ours, with biases as the peers have them."""
    return TextTowerConfig(
        **size._asdict(), biases=True, vocab_size=VOCABULARY, context_length=CONTEXT_LENGTH
    )


def pack_captions(captions: Sequence[list[int]]) -> Captions:
    return Captions.pack(captions, identity=range(len(captions)))


def padded_captions(captions: Sequence[list[int]]) -> Tensor:
    """Ids [captions, 64], zeros before the caption, whose last token is then the row's."""
    return torch.tensor([[0] * (CONTEXT_LENGTH - len(caption)) + caption for caption in captions])


def open_clip_text(size: Size) -> dict[str, Any]:
    """open_clip's settings of a text tower like its ViT-B-16-SigLIP's."""
    return {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": VOCABULARY,
        "width": size.width,
        "heads": size.num_heads,
        "layers": size.depth,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
    }


def _packed(size: Size, captions: Sequence[list[int]], machine: Machine) -> Callable[[], Tensor]:
    tower = TextTower(tower_config(size), embedding_dim=size.width)
    initialize(tower)
    tower.to(machine.device)
    packed = pack_captions(captions).to(machine.device)
    return lambda: tower(packed)


def _open_clip(size: Size, captions: Sequence[list[int]], machine: Machine) -> Callable[[], Tensor]:
    from open_clip.transformer import TextTransformer

    tower = TextTransformer(
        **open_clip_text(size), mlp_ratio=size.mlp_dim / size.width, output_dim=size.width
    ).to(machine.device)
    ids = padded_captions(captions).to(machine.device)
    return lambda: tower(ids)


def _siglip2(size: Size, captions: Sequence[list[int]], machine: Machine) -> Callable[[], Tensor]:
    """With its mask, as its processor's captions come."""
    from transformers import Siglip2TextConfig, Siglip2TextModel

    config = Siglip2TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=size.mlp_dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        projection_size=size.width,
        bos_token_id=None,
        eos_token_id=1,
    )
    tower = Siglip2TextModel(config)
    tower.to(device=machine.device)  # pyright: ignore[reportCallIssue]
    ids = padded_captions(captions).to(machine.device)
    mask = (torch.arange(CONTEXT_LENGTH) >= torch.tensor([[CONTEXT_LENGTH - len(c)] for c in captions])).int()
    mask = mask.to(machine.device)
    return lambda: tower(ids, attention_mask=mask).pooler_output
