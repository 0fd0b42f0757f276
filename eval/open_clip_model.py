"""open_clip's models as evaluation takes them: `open_clip:NAME[,PRETRAINED]`.

PRETRAINED is one of open_clip's tags (which it may have to download) or a checkpoint file; without it the
weights are random, which a result then says, unless NAME is of a folder or a repository that has its own
(local-dir:FOLDER, hf-hub:OWNER/MODEL). Images go through the model's own evaluation transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from eval.fixed_size import TransformPreparation, autocast, refuse_packed_settings
from eval.image_config import ImageConfig
from navit_clip.config import nearest
from navit_clip.errors import CheckpointError, ConfigError

PREFIX = "open_clip:"
RANDOM = "random weights"
LAST_STRIDE = 32
"""Pixels between the cells of a convolutional tower's last map."""


class OpenClipModel:
    """A model that takes images of one size and captions of one length.

    Where the text tower is causal and pools the end token, what comes after that token changes nothing,
    and captions are cut to the longest of their pack.
    """

    def __init__(self, spec: str, device: torch.device, dtype: torch.dtype):
        """Builds the model that `spec` names, on a device.

        Raises:
            ConfigError: open_clip has no model or no weights of that name.
            CheckpointError: the weights cannot be read, or are those of another model.
        """
        import open_clip

        model_name, _, pretrained = spec.removeprefix(PREFIX).partition(",")
        _check(model_name, pretrained)
        try:
            model, _, transform = open_clip.create_model_and_transforms(
                model_name, pretrained=pretrained or None, device=device
            )
        except (RuntimeError, OSError, ValueError, KeyError, UnpicklingError) as error:
            raise CheckpointError(f"{spec}: open_clip cannot load it: {error}") from error
        if not hasattr(model, "encode_text"):
            raise CheckpointError(f"{spec}: has no text tower; zero-shot evaluation needs both")
        self.name = spec
        self.pretrained = pretrained or (model_name if ":" in model_name else RANDOM)
        self.module = model.eval()
        self._model: Any = model  # open_clip types less than it has
        self.logit_scale = self._model.logit_scale.detach().float().exp().item()
        self.precision = str(dtype).removeprefix("torch.")
        self._dtype = dtype
        self._device = device
        self._transform: Any = transform
        self._tokenizer = open_clip.get_tokenizer(model_name)
        self._causal = _pools_end_token_causally(model)
        with torch.no_grad():
            self.embedding_dim = self.encode_captions(self.tokenize(["a"])).shape[1]

    def preparation(self, config: ImageConfig) -> TransformPreparation:
        refuse_packed_settings(config, self.name)
        return TransformPreparation(self._transform, _tokens_per_image(self._model.visual))

    def encode_images(self, pack: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images dim"]:
        with autocast(self._device, self._dtype):
            return F.normalize(self._model.encode_image(pack.to(self._device)), dim=-1).float()

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        ids = self._tokenizer(list(captions)).tolist()
        return [_up_to_end(caption) for caption in ids] if self._causal else ids

    def encode_captions(self, ids: list[list[int]]) -> Float[Tensor, "captions dim"]:
        longest = max(map(len, ids))
        rows = torch.tensor([[*caption, *[0] * (longest - len(caption))] for caption in ids])
        with autocast(self._device, self._dtype):
            return F.normalize(self._encode_text(rows.to(self._device)), dim=-1).float()

    def _encode_text(self, ids: Shaped[Tensor, "captions length"]) -> Tensor:
        if not self._causal:
            return self._model.encode_text(ids)
        tower = self._model
        length = ids.shape[1]
        tokens = tower.token_embedding(ids) + tower.positional_embedding[:length]
        tokens = tower.transformer(tokens, attn_mask=tower.attn_mask[:length, :length])
        pooled = tower.ln_final(tokens)[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]
        projection = tower.text_projection
        return projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection


def _check(model_name: str, pretrained: str) -> None:
    """Raises ConfigError where open_clip has no such model, or no such weights and there is no such file."""
    import open_clip

    if ":" in model_name:  # a folder or a hub's name, which open_clip looks up itself
        return
    models = open_clip.list_models()
    if model_name not in models:
        raise ConfigError(f"{PREFIX}{model_name}: open_clip has no such model; {nearest(model_name, models)}")
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise ConfigError(
            f"{PREFIX}{model_name},{pretrained}: neither a file nor a tag of this model; "
            f"its tags: {', '.join(tags) or 'none'}"
        )


def _pools_end_token_causally(model: Any) -> bool:
    """Whether the text tower is CLIP's own: a causal mask, and the vector of the end token."""
    return (
        getattr(model, "text_pool_type", None) == "argmax" and getattr(model, "attn_mask", None) is not None
    )


def _up_to_end(ids: list[int]) -> list[int]:
    """Without the padding; CLIP's end token is its largest id."""
    return ids[: ids.index(max(ids)) + 1]


def _tokens_per_image(visual: Any) -> int:
    """Patches of an image, or cells of the last map of a convolutional tower."""
    sides = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
    trunk = getattr(visual, "trunk", None)  # a timm model's; NaFlexVit calls it embeds
    embedding = getattr(trunk, "patch_embed", None) or getattr(trunk, "embeds", None)
    patch = getattr(visual, "patch_size", None) or getattr(embedding, "patch_size", None) or LAST_STRIDE
    patches = patch if isinstance(patch, tuple) else (patch, patch)
    return (sides[0] // patches[0]) * (sides[1] // patches[1])
