"""Fixed-resolution SigLIP, 1 or 2, as what it is beside SigLIP 2 NaFlex: the same towers on a square grid.

Its patch embedding is a convolution whose stride is its size, so a linear layer on flattened patches; its
position table is that of the one grid that it was trained at.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor
from transformers import Siglip2Config, SiglipConfig, SiglipTextConfig, SiglipVisionConfig

from navit_clip.errors import CheckpointError, with_faults
from navit_clip.huggingface.siglip2 import size_faults

PATCH_EMBEDDING = "vision_model.embeddings.patch_embedding.weight"


def siglip2_config_of(config: SiglipConfig) -> Siglip2Config:
    """The Siglip2Config of the same towers.

    Raises:
        CheckpointError: images or patches are not square, or a patch is larger than an image.
    """
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, SiglipVisionConfig)
    assert isinstance(text, SiglipTextConfig)
    image_size, patch_size = vision.image_size, vision.patch_size
    faults = size_faults({"vision_config.patch_size": patch_size, "vision_config.image_size": image_size})
    if faults or not isinstance(image_size, int) or not isinstance(patch_size, int):
        raise CheckpointError(with_faults("a Siglip model that our towers cannot express", faults))
    if image_size < patch_size:
        raise CheckpointError(
            f"vision_config.image_size is {image_size}, expected at least one patch of {patch_size}"
        )
    # A convolution leaves out the pixels at the end that do not fill a patch: 384 / 14 gives 27.
    vision_settings = {**vision.to_dict(), "num_patches": (image_size // patch_size) ** 2}
    text_settings = text.to_dict()
    for settings in (vision_settings, text_settings):
        for name in ("model_type", "image_size", "architectures", "transformers_version", "dtype"):
            settings.pop(name, None)
    return Siglip2Config(vision_config=vision_settings, text_config=text_settings)


def siglip2_weights_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`SiglipModel`'s state dict as `Siglip2Model`'s."""
    return {**weights, PATCH_EMBEDDING: flattened_convolution(weights[PATCH_EMBEDDING])}


def flattened_convolution(
    weight: Float[Tensor, "dim 3 patch_size patch_size"],
) -> Float[Tensor, "dim patch_dim"]:
    """A patch convolution's kernel, applied to a patch in (row, column, channel) order."""
    return weight.permute(0, 2, 3, 1).flatten(1)
