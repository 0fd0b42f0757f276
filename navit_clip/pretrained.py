"""A model ready to use: pictures and sentences in, unit vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from navit_clip.batch import Captions, PackedImages, Patches, caption_identity
from navit_clip.data.images import picture_pixels
from navit_clip.data.patches import cut_patches
from navit_clip.errors import ConfigError, SampleError
from navit_clip.model import TwoTowers, choose_backend
from navit_clip.tokenizer import Tokenizer
from navit_clip.weights import (
    CONFIG_FILE,
    TOKENS_PER_IMAGE,
    LoadedModel,
    load_model,
    resolve_model_folder,
    usual_tokens,
)

T = TypeVar("T")

FOREIGN_FILES = ("config.json", "open_clip_config.json")
"""By which a folder of transformers or open_clip is known."""

TOKEN_BUDGET = 16384
"""Tokens of one forward pass."""


class NavitClip:
    """Towers with their tokenizer, and how many patches an image becomes.

    Args:
        towers: in evaluation mode, on the device where they are to run.
        tokenizer: what the text tower was trained with.
        tokens_per_image: patches of an image at most; each keeps its shape and comes as near as that allows.
    """

    def __init__(self, towers: TwoTowers, tokenizer: Tokenizer, tokens_per_image: int = TOKENS_PER_IMAGE):
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
        tokens_per_image: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> NavitClip:
        """Opens a model; nothing is unpickled, and no code that comes with it is run.

        Args:
            name: a run, checkpoint or model folder; a SigLIP 2, SigLIP or open_clip folder (see
                docs/export.md); or the name of such a one on the Hugging Face hub.
            tokens_per_image: patches of an image at most. Without it the model's own number: what the
                evaluations of its run have, or what the image processor of another folder says; where
                nothing says any, 256.
            device: where to run.
            dtype: what matrix products and attention run in; weights stay in float32.
            revision: of a repository on the hub.

        Raises:
            CheckpointError: there is no such model, it is not whole, or it cannot be expressed.
        """
        device = torch.device(device)
        (towers, tokenizer), usual = _load(name, revision)
        choose_backend("auto", device, dtype)
        towers.compute_dtype = dtype
        if tokens_per_image is None:
            tokens_per_image = usual or TOKENS_PER_IMAGE
        return cls(towers.to(device), tokenizer, tokens_per_image)

    def encode_images(self, images: Iterable[Image.Image]) -> Float[Tensor, "images dim"]:
        """Unit vectors of pictures of any size and mode, in the order given; none make a [0, dim].

        Raises:
            TypeError: a single picture instead of several, or something that is no Pillow image.
            SampleError: a picture is empty or its file broken; says which.
        """
        vectors = list(self.encode_patches(self._cut(images)))
        return torch.cat(vectors) if vectors else self._no_vectors()

    def _cut(self, images: object) -> Iterator[Patches]:
        config = self.towers.config.image
        how = config.patch_size, self.tokens_per_image, config.position.reach
        for number, image in enumerate(_each(images, Image.Image, "images", "PIL image")):
            try:
                if not image.width or not image.height:
                    raise SampleError("empty image", f"{image.width} x {image.height} pixels")
                pixels = picture_pixels(image)
            except SampleError as error:
                raise SampleError(error.cause, f"images[{number}]: {error.detail}") from error
            yield cut_patches(pixels, *how)

    def encode_patches(self, images: Iterable[Patches]) -> Iterator[Float[Tensor, "images dim"]]:
        """The same of pictures that were cut already, pack by pack, taken as they come."""
        for pack in packed(images):
            with torch.no_grad():
                yield self.towers.encode_images(pack.to(self._device))

    @torch.no_grad()
    def encode_text(self, texts: Iterable[str]) -> Float[Tensor, "texts dim"]:
        """Unit vectors of sentences, in the order given, none making a [0, dim]; what is too long is cut.

        Raises:
            TypeError: a single sentence instead of several, or something that is no string.
        """
        context_length = self.towers.config.text.context_length
        step = max(1, TOKEN_BUDGET // context_length)
        sentences = list(_each(texts, str, "texts", "string"))
        vectors = []
        for start in range(0, len(sentences), step):
            part = sentences[start : start + step]
            identity = [caption_identity(text) for text in part]
            captions = Captions.pack(self.tokenizer.encode(part, context_length), identity)
            vectors.append(self.towers.encode_captions(captions.to(self._device)))
        return torch.cat(vectors) if vectors else self._no_vectors()

    @torch.no_grad()
    def logits(
        self, images: Float[Tensor, "images dim"], texts: Float[Tensor, "texts dim"]
    ) -> Float[Tensor, "images texts"]:
        """exp(t') x y + b of vectors from both towers; their sigmoid says how likely each pair is."""
        return self.towers.logit_scale.exp() * images @ texts.T + self.towers.logit_bias

    def _no_vectors(self) -> Float[Tensor, "0 dim"]:
        return torch.empty(0, self.towers.embedding_dim, device=self._device)

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


def _load(name: str | Path, revision: str | None) -> tuple[LoadedModel, int | None]:
    """A model, and how many patches its images have where nobody says."""
    folder = Path(name)
    if not folder.exists():
        from navit_clip.huggingface.hub import fetch

        folder = fetch(str(name), revision)
    is_foreign = any((folder / name).exists() for name in FOREIGN_FILES)
    if (folder / CONFIG_FILE).exists() or not is_foreign:
        return load_model(resolve_model_folder(folder)), usual_tokens(folder)
    # Whoever opens a model of their own needs none of this, and importing it takes seconds.
    from navit_clip.huggingface.importing import import_folder, native_tokens
    from navit_clip.huggingface.quiet import quiet_transformers

    with quiet_transformers():
        loaded = import_folder(folder).loaded
    return loaded, native_tokens(folder, loaded.model.config)


def _each(given: object, kind: type[T], name: str, one: str) -> Iterator[T]:
    """What was given, one after the other.

    Raises:
        TypeError: it is a single one, or no series at all, or something in it is of another kind.
    """
    if isinstance(given, kind):
        raise TypeError(f"{name}: expected a list of {one}s, found one alone; pass it as [...]")
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a list of {one}s, found {_kind(given)}")
    for number, value in enumerate(given):
        if not isinstance(value, kind):
            raise TypeError(f"{name}[{number}]: expected a {one}, found {_kind(value)}")
        yield value


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
