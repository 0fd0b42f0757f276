"""What `--model` names -> a model to judge, on a device: ours, open_clip's, or a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch

from eval.model import JudgedModel, PackedModel
from eval.open_clip_model import PREFIX, OpenClipModel
from navit_clip.errors import CheckpointError
from navit_clip.weights import CONFIG_FILE, load_model, resolve_model_folder


def load_judged(spec: str, device: torch.device, dtype: torch.dtype) -> JudgedModel:
    """The model that `spec` names.

    Args:
        spec: a run, a checkpoint or a model folder of ours; a Hugging Face folder; or
            `open_clip:NAME[,PRETRAINED|FILE]`.
        device: where it is to run.
        dtype: what its products are computed in.

    Raises:
        CheckpointError: there is no such model, it cannot be read, or it lacks a tower.
        ConfigError: open_clip has no model or weights of that name.
    """
    if spec.startswith(PREFIX):
        return OpenClipModel(spec, device, dtype)
    folder = Path(spec)
    if (folder / "config.json").is_file() and not (folder / CONFIG_FILE).exists():
        from eval.huggingface_model import load_huggingface  # transformers' model classes take seconds

        return load_huggingface(folder, spec, device, dtype)
    folder = resolve_model_folder(folder)
    model, tokenizer = load_model(folder)
    model.to(device).compute_dtype = dtype
    return PackedModel(model, tokenizer, spec, str(folder))


def model_home(spec: str) -> Path:
    """The folder that a model's results belong to: its own, or one under runs/ for what has none.

    Raises:
        CheckpointError: there is no such folder.
    """
    if spec.startswith(PREFIX):
        return Path("runs") / "".join(c if c.isalnum() or c in "-_." else "-" for c in spec)
    if not Path(spec).is_dir():
        raise CheckpointError(
            f"{spec}: no such folder (expected a run, a checkpoint or a model folder, a Hugging Face folder, "
            f"or {PREFIX}NAME[,PRETRAINED|FILE])"
        )
    return Path(spec)
