"""An imported model against the one that it came from, run by that one's own library.

Images are noise, as the same bytes to both: on grids of several shapes where the other model takes them, on
the one grid that it was trained at where it does not. Captions go through both tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Siglip2Model, SiglipModel

from navit_clip.batch import Captions, PackedImages, Patches, caption_identity
from navit_clip.data.patches import cut_grid, picture_of
from navit_clip.errors import CheckpointError
from navit_clip.huggingface.examples import CAPTIONS
from navit_clip.huggingface.modeling_navit_siglip import NavitSiglipModel
from navit_clip.huggingface.verification import BOUND, Verification
from navit_clip.tokenizer import PaddedTokenizer
from navit_clip.weights import LoadedModel

FIXED = (SiglipModel,)
FLEXIBLE = (Siglip2Model, NavitSiglipModel)
"""transformers' models that take one grid, and those that take any."""
GRIDS = ((1, 1), (1, 40), (40, 1), (7, 7), (11, 22), (20, 9))


def verify_import(loaded: LoadedModel, theirs: nn.Module, tokenizer: Any, exact: bool = True) -> Verification:
    """Compares scalars, token ids and embeddings, on the CPU in float32.

    Args:
        loaded: the imported model.
        theirs: a SiglipModel, a Siglip2Model or an open_clip model, with its weights.
        tokenizer: its own, of transformers or open_clip.
        exact: whether vectors have to be equal; they are measured in any case.

    Raises:
        CheckpointError: they differ.
    """
    for name in ("logit_scale", "logit_bias"):
        if getattr(loaded.model, name).item() != getattr(theirs, name).item():
            raise CheckpointError(f"the imported model is not the original: its {name} differs")
    images = _images(loaded, theirs)
    with torch.no_grad():
        of_images = loaded.model.encode_images(PackedImages.pack(images))
        image_difference = _difference(of_images, _their_images(theirs, images, loaded))
        ids = _checked_ids(loaded, tokenizer)
        packed = Captions.pack(ids, [caption_identity(caption) for caption in CAPTIONS])
        of_captions = loaded.model.encode_captions(packed)
        caption_difference = _difference(of_captions, _their_captions(theirs, ids, loaded))
    for kind, difference in (("images", image_difference), ("captions", caption_difference)):
        if exact and not difference <= BOUND:  # a NaN is not within the bound either
            raise CheckpointError(
                f"the imported model is not the original: embeddings of {kind} differ by {difference:.1e}, "
                f"expected at most {BOUND:.0e}"
            )
    return Verification(len(images), image_difference, len(CAPTIONS), caption_difference)


def _images(loaded: LoadedModel, theirs: nn.Module) -> list[Patches]:
    config = loaded.model.config.image
    side = config.position.table_side
    noise = np.random.default_rng(0)
    grids: Sequence[tuple[int, int]] = [(side, side)] * 4
    if isinstance(theirs, Siglip2Model):
        grids = (*GRIDS, (side, side))
    elif isinstance(theirs, NavitSiglipModel):
        grids = [(1, 1), (1, side), (side, 1), (max(1, side // 2), side), (side, side)]
    sizes = [(rows * config.patch_size, columns * config.patch_size, 3) for rows, columns in grids]
    pictures = [noise.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    return [cut_grid(picture, config.patch_size, grid) for picture, grid in zip(pictures, grids, strict=True)]


def _their_images(theirs: Any, images: Sequence[Patches], loaded: LoadedModel) -> Float[Tensor, "images dim"]:
    if type(theirs) in FLEXIBLE:
        return torch.cat([_their_vector(theirs, image) for image in images])
    squares = torch.stack([picture_of(image, loaded.model.config.image.patch_size) for image in images])
    if type(theirs) in FIXED:
        # Pixels that fill no patch, and that the convolution does not reach.
        rest: int = theirs.config.vision_config.image_size - squares.shape[-1]
        return theirs.vision_model(F.pad(squares, (0, rest, 0, rest))).pooler_output
    return theirs.encode_image(squares)


def _their_vector(theirs: Any, image: Patches) -> Float[Tensor, "1 dim"]:
    inputs: dict[str, Any] = {
        "pixel_values": (torch.from_numpy(image.pixels) / 127.5 - 1)[None],
        "pixel_attention_mask": torch.ones(1, len(image)),
        "spatial_shapes": torch.tensor([image.grid]),
    }
    if type(theirs) is Siglip2Model and image.grid[1] == 1:
        # Older versions of transformers resize positions by torch, which on a CPU repeats the first row in an
        # image one column wide. So it is shown lying, on the transposed table: the positions are the same.
        name = "embeddings.position_embedding.weight"
        table = theirs.vision_model.get_parameter(name)
        side = math.isqrt(len(table))
        lying = {name: table.view(side, side, -1).transpose(0, 1).flatten(0, 1)}
        inputs["spatial_shapes"] = inputs["spatial_shapes"].flip(-1)
        return functional_call(theirs.vision_model, lying, kwargs=inputs).pooler_output
    features: Any = theirs.get_image_features(**inputs)
    return features.pooler_output


def _their_captions(
    theirs: Any, ids: Sequence[Sequence[int]], loaded: LoadedModel
) -> Float[Tensor, "captions dim"]:
    length = loaded.model.config.text.context_length
    padded = torch.tensor([[0] * (length - len(caption)) + list(caption) for caption in ids])
    if type(theirs) in (*FIXED, *FLEXIBLE):
        mask = torch.tensor([[0] * (length - len(caption)) + [1] * len(caption) for caption in ids])
        return theirs.get_text_features(input_ids=padded, attention_mask=mask).pooler_output
    return theirs.encode_text(
        torch.tensor([list(caption) + [0] * (length - len(caption)) for caption in ids])
    )


def _checked_ids(loaded: LoadedModel, tokenizer: Any) -> list[list[int]]:
    """Our ids of the captions, which are theirs."""
    length = loaded.model.config.text.context_length
    ids = loaded.tokenizer.encode(CAPTIONS, length)
    for caption, ours in zip(CAPTIONS, ids, strict=True):
        theirs = _their_ids(caption, loaded, tokenizer, length)
        if theirs != ours:
            raise CheckpointError(f"the original's tokenizer reads {caption!r} as {theirs}, ours as {ours}")
    return ids


def _their_ids(caption: str, loaded: LoadedModel, tokenizer: Any, length: int) -> list[int]:
    padded = loaded.tokenizer if isinstance(loaded.tokenizer, PaddedTokenizer) else None
    if not hasattr(tokenizer, "pad_token_id"):  # one of open_clip, which cleans and pads by itself
        ids = tokenizer([caption], length)[0].tolist()
        return ids if padded else ids[: ids.index(tokenizer.eot_token_id) + 1]
    ids: list[int] = tokenizer(caption, truncation=True, max_length=length).input_ids
    if tokenizer.eos_token_id not in ids:  # every caption was trained with one
        ids = [*ids[: length - 1], tokenizer.eos_token_id]
    return ids if padded is None else [*ids, *[padded.pad_id] * (length - len(ids))]


def _difference(ours: Float[Tensor, "vectors dim"], pooled: Float[Tensor, "vectors dim"]) -> float:
    return float((F.normalize(pooled, dim=-1) - ours).abs().max())
