"""An image with the caption chosen for it, and a batch of such pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from navit_clip.batch import Batch, Captions, PackableImage, PackedImages, caption_identity
from navit_clip.data.transport import NewBlock, private_block

Image = TypeVar("Image", bound=PackableImage)


@dataclass(frozen=True, slots=True)
class Pair(Generic[Image]):
    """One sample, ready to be packed."""

    key: str
    image: Image
    caption: str
    """As the sample has it: what makes two captions equal, whatever template each was put into."""
    ids: list[int]
    """What the text tower reads: the caption in its template, as tokens."""

    @property
    def num_bytes(self) -> int:
        """What it takes in a batch: its patches and their places, grid, ids, identity, and two offsets."""
        return len(self.image) * (self.image.patch_dim + 8) + 8 + 4 * len(self.ids) + 8 + 2 * 4


def batch_of(
    pairs: Sequence[Pair[Image]], longest_wait: int = 0, new_block: NewBlock = private_block
) -> Batch:
    """Packs pairs, at least one, in the order given, into one block of memory.

    Args:
        pairs: what to pack.
        longest_wait: see `Batch`.
        new_block: gives the memory.
    """
    block = new_block(sum(pair.num_bytes for pair in pairs))
    return Batch(
        images=PackedImages.pack([pair.image for pair in pairs], block.empty),
        captions=Captions.pack(
            [pair.ids for pair in pairs], [caption_identity(pair.caption) for pair in pairs], block.empty
        ),
        keys=tuple(pair.key for pair in pairs),
        longest_wait=longest_wait,
    )
