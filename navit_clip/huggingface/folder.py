"""A model -> a folder that transformers opens without this package: weights, processor, tokenizer.

The folder is a plain `Siglip2Model`, `Siglip2VisionModel` or `Siglip2TextModel`; nothing in it is code.
"""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    Siglip2TextModel,
    Siglip2Tokenizer,
    Siglip2VisionModel,
)

from navit_clip.errors import ExportError
from navit_clip.huggingface.siglip2 import (
    CONTEXT_LENGTH,
    TowerName,
    inexpressible,
    siglip2_config,
    siglip2_weights,
)
from navit_clip.tokenizer import PADDING_FILE, PaddedTokenizer
from navit_clip.weights import LoadedModel

MASKED_PADDING = {"padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
"""Of packed captions: padding is masked, and each caption's last token comes last."""
ATTENDED_PADDING = {"padding_side": "right", "model_input_names": ["input_ids"]}
"""Of captions that were trained padded, as in Google's models: without a mask the padding is attended to."""


def write_siglip2(loaded: LoadedModel, folder: Path, tower: TowerName, tokens_per_image: int) -> None:
    """Writes a model, or one of its towers, into an existing empty folder, in float32.

    Args:
        loaded: the model and its tokenizer.
        folder: where to.
        tower: which part of it.
        tokens_per_image: how many patches the image processor cuts an image into at most.

    Raises:
        ExportError: SigLIP 2 cannot express the model; lists every setting that is in the way.
    """
    model, tokenizer = loaded
    faults = inexpressible(model.config, tokenizer, tower)
    if faults:
        raise ExportError(
            "SigLIP 2 cannot express this model, so it cannot leave as a native transformers model:\n  "
            + "\n  ".join(faults)
        )
    config = siglip2_config(model.config)
    weights = siglip2_weights(model.state_dict(), model.config)
    classes = {
        "both": (Siglip2Model, config, ""),
        "image": (Siglip2VisionModel, config.vision_config, "vision_model."),
        "text": (Siglip2TextModel, config.text_config, "text_model."),
    }
    siglip2_class, siglip2_settings, prefix = classes[tower]
    siglip2 = siglip2_class(siglip2_settings)
    siglip2.load_state_dict(
        {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    )
    siglip2.save_pretrained(folder)
    _save_processor(loaded, folder, tower, tokens_per_image)


def _save_processor(loaded: LoadedModel, folder: Path, tower: TowerName, tokens_per_image: int) -> None:
    cutting = {"patch_size": loaded.model.config.image.patch_size, "max_num_patches": tokens_per_image}
    image_processor = Siglip2ImageProcessor(
        **cutting, do_convert_rgb=True, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    if tower == "image":
        image_processor.save_pretrained(folder)
        return
    loaded.tokenizer.save(folder)
    (folder / PADDING_FILE).unlink(missing_ok=True)  # transformers has settings of its own for this
    padding = MASKED_PADDING
    if isinstance(loaded.tokenizer, PaddedTokenizer):
        padding = ATTENDED_PADDING
    tokenizer = Siglip2Tokenizer.from_pretrained(folder, **padding, model_max_length=CONTEXT_LENGTH)
    for left_by_loading in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(left_by_loading, None)
    if tower == "text":
        tokenizer.save_pretrained(folder)
    else:
        # Siglip2Processor gives the image processor the defaults of its own class, over what the image
        # processor was saved with; what the tokenizer was saved with goes over both.
        tokenizer.init_kwargs.update(cutting)
        Siglip2Processor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
