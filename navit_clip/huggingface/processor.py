"""A model's preprocessing as transformers' image processor, tokenizer and processor."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    CLIPTokenizer,
    Siglip2ImageProcessor,
    Siglip2Processor,
    Siglip2Tokenizer,
)

from navit_clip.errors import ExportError
from navit_clip.huggingface.siglip2 import TowerName
from navit_clip.tokenizer import PADDING_FILE, PaddedTokenizer, Tokenizer
from navit_clip.weights import LoadedModel

MASKED_PADDING = {"padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
"""Of packed captions: padding is masked, and each caption's last token comes last."""
ATTENDED_PADDING = {"padding_side": "right", "model_input_names": ["input_ids"]}
"""Of captions that were trained padded, as in Google's models: without a mask the padding is attended to."""


def save_processor(loaded: LoadedModel, folder: Path, tower: TowerName, tokens_per_image: int) -> None:
    """Writes what AutoImageProcessor, AutoTokenizer and AutoProcessor read.

    Args:
        loaded: the model and its tokenizer.
        folder: of the model.
        tower: which part of it is in the folder.
        tokens_per_image: how many patches the image processor cuts an image into at most.

    Raises:
        ExportError: transformers has no tokenizer like this model's.
    """
    cutting = {"patch_size": loaded.model.config.image.patch_size, "max_num_patches": tokens_per_image}
    image_processor = Siglip2ImageProcessor(
        **cutting, do_convert_rgb=True, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    if tower == "image":
        image_processor.save_pretrained(folder)
        return
    context_length = loaded.model.config.text.context_length
    tokenizer = transformers_tokenizer(loaded.tokenizer, context_length)
    if tower == "text":
        tokenizer.save_pretrained(folder)
    else:
        # Siglip2Processor gives the image processor and the tokenizer the defaults of its own class, over
        # what they were saved with; what the tokenizer was saved with goes over both.
        tokenizer.init_kwargs.update(cutting, max_length=context_length)
        Siglip2Processor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)


def transformers_tokenizer(tokenizer: Tokenizer, context_length: int) -> Any:
    """transformers' tokenizer with the same ids.

    Raises:
        ExportError: transformers has none.
    """
    settings: dict[str, Any] = {**MASKED_PADDING, "model_max_length": context_length}
    if isinstance(tokenizer, PaddedTokenizer):
        settings |= ATTENDED_PADDING
        if tokenizer.cleaning != "none":
            raise ExportError(
                f"tokenizer: captions are cleaned ({tokenizer.cleaning}) before they are encoded, which "
                "transformers' tokenizers do not do"
            )
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save(Path(saved))
        (Path(saved) / PADDING_FILE).unlink(missing_ok=True)  # transformers has settings of its own for this
        if tokenizer.form == "siglip2":
            backend: Any = Siglip2Tokenizer.from_pretrained(saved, **settings)
        elif tokenizer.form == "open_clip":
            backend = _open_clip(Path(saved), settings)
        else:
            backend = AutoTokenizer.from_pretrained(saved, **settings)
    for left_by_loading in ("is_local", "local_files_only"):
        backend.init_kwargs.pop(left_by_loading, None)
    if backend.pad_token is None:
        backend.pad_token = backend.eos_token  # padding is masked, so any token will do
    return backend


def _open_clip(folder: Path, settings: dict[str, Any]) -> CLIPTokenizer:
    """open_clip's BPE from its vocabulary and merges."""
    from open_clip.tokenizer import SimpleTokenizer

    source = SimpleTokenizer()
    merges = sorted(source.bpe_ranks, key=source.bpe_ranks.__getitem__)
    vocabulary = {_special(token): number for token, number in source.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), **settings)


def _special(token: str) -> str:
    return {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(token, token)
