"""An image cut to patches with the caption chosen for it, and a batch of such pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from navit_clip.batch import Batch, Captions, PackedImages, Patches, caption_identity
from navit_clip.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """One sample, ready to be packed."""

    key: str
    patches: Patches
    caption: str
    """As the sample has it: what makes two captions equal, whatever template each was put into."""
    text: str
    """What the text tower reads: the caption in its template."""


def batch_of(pairs: Sequence[Pair], tokenizer: Tokenizer, context_length: int) -> Batch:
    """Packs pairs, at least one, in the order given.

    Args:
        pairs: what to pack.
        tokenizer: encodes the texts.
        context_length: most tokens of a text, the end token among them.
    """
    return Batch(
        images=PackedImages.pack([pair.patches for pair in pairs]),
        captions=Captions.pack(
            tokenizer.encode([pair.text for pair in pairs], context_length),
            [caption_identity(pair.caption) for pair in pairs],
        ),
        keys=tuple(pair.key for pair in pairs),
    )
