"""A model ready to use: pictures and sentences in, unit vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from navit_clip.batch import Captions, PackedImages, Patches, caption_identity
from navit_clip.data.images import picture_pixels
from navit_clip.data.patches import cut_patches
from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.model import TwoTowers, choose_backend
from navit_clip.tokenizer import Tokenizer
from navit_clip.weights import LoadedModel, load_model, resolve_model_folder

TOKEN_BUDGET = 16384
"""Tokens of one forward pass."""


class NavitClip:
    """Towers with their tokenizer, and how many patches an image becomes.

    Args:
        towers: in evaluation mode, on the device where they are to run.
        tokenizer: what the text tower was trained with.
        tokens_per_image: patches of an image at most; each keeps its shape and comes as near as that allows.
    """

    def __init__(self, towers: TwoTowers, tokenizer: Tokenizer, tokens_per_image: int = 256):
        if tokens_per_image < 1:
            raise ConfigError(f"tokens_per_image: expected at least 1, found {tokens_per_image}")
        self.towers = towers
        self.tokenizer = tokenizer
        self.tokens_per_image = tokens_per_image

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        tokens_per_image: int = 256,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> NavitClip:
        """Opens a model; nothing is unpickled, and no code that comes with it is run.

        Args:
            name: a run, checkpoint or model folder; a SigLIP 2, SigLIP or open_clip folder (see
                docs/export.md); or the name of such a one on the Hugging Face hub.
            tokens_per_image: see the class.
            device: where to run.
            dtype: what matrix products and attention run in; weights stay in float32.
            revision: of a repository on the hub.

        Raises:
            CheckpointError: there is no such model, it is not whole, or it cannot be expressed.
        """
        device = torch.device(device)
        towers, tokenizer = _load(name, revision)
        choose_backend("auto", device, dtype)
        towers.compute_dtype = dtype
        return cls(towers.to(device), tokenizer, tokens_per_image)

    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "images dim"]:
        """Unit vectors of pictures of any size and mode, at least one, in the order given.

        Raises:
            SampleError: a picture's file is broken.
        """
        config = self.towers.config.image
        how = config.patch_size, self.tokens_per_image, config.position.reach
        cut = (cut_patches(picture_pixels(image), *how) for image in images)
        return torch.cat(list(self.encode_patches(cut)))

    def encode_patches(self, images: Iterable[Patches]) -> Iterator[Float[Tensor, "images dim"]]:
        """The same of pictures that were cut already, pack by pack, taken as they come."""
        for pack in packed(images):
            with torch.no_grad():
                yield self.towers.encode_images(pack.to(self._device))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Unit vectors of sentences, at least one, in the order given; what is too long is cut."""
        context_length = self.towers.config.text.context_length
        step = max(1, TOKEN_BUDGET // context_length)
        vectors = []
        for start in range(0, len(texts), step):
            part = texts[start : start + step]
            identity = [caption_identity(text) for text in part]
            captions = Captions.pack(self.tokenizer.encode(part, context_length), identity)
            vectors.append(self.towers.encode_captions(captions.to(self._device)))
        return torch.cat(vectors)

    @torch.no_grad()
    def logits(
        self, images: Float[Tensor, "images dim"], texts: Float[Tensor, "texts dim"]
    ) -> Float[Tensor, "images texts"]:
        """exp(t') x y + b of vectors from both towers; their sigmoid says how likely each pair is."""
        return self.towers.logit_scale.exp() * images @ texts.T + self.towers.logit_bias

    @property
    def _device(self) -> torch.device:
        return self.towers.logit_scale.device


def packed(images: Iterable[Patches]) -> Iterator[PackedImages]:
    """Packs in the order given, of at most `TOKEN_BUDGET` tokens or one larger image."""
    waiting: list[Patches] = []
    for image in images:
        if waiting and sum(map(len, waiting)) + len(image) > TOKEN_BUDGET:
            yield PackedImages.pack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield PackedImages.pack(waiting)


def _load(name: str | Path, revision: str | None) -> LoadedModel:
    folder = Path(name)
    if _is_own(folder):
        return load_model(resolve_model_folder(folder))
    # Whoever opens a model of their own needs none of this, and importing it takes seconds.
    from navit_clip.huggingface.hub import fetch
    from navit_clip.huggingface.importing import import_folder
    from navit_clip.huggingface.quiet import quiet_transformers

    folder = folder if folder.is_dir() else fetch(str(name), revision)
    if _is_own(folder):
        return load_model(resolve_model_folder(folder))
    with quiet_transformers():
        return import_folder(folder).loaded


def _is_own(folder: Path) -> bool:
    """Whether a folder is a run, a checkpoint or a model folder of ours."""
    try:
        resolve_model_folder(folder)
    except CheckpointError:
        return False
    return True
