"""Each tower as an ONNX graph with any number of images, patches and captions; checked with onnxruntime.

    image.onnx   pixel_values [images, patches, patch_dim], pixel_attention_mask, spatial_shapes
    text.onnx    input_ids [captions, context_length], attention_mask

They give image_embeds and text_embeds, unit vectors. Inputs are as the folder's processor makes them. An
image whose grid is beyond a table of absolute positions is refused by what runs the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer

from navit_clip.errors import ConfigError
from navit_clip.huggingface.modeling_navit_siglip import NavitSiglipTextModel, NavitSiglipVisionModel
from navit_clip.huggingface.own_architecture import own_config
from navit_clip.huggingface.processor import save_processor
from navit_clip.huggingface.siglip2 import TowerName
from navit_clip.huggingface.verification import Verification, compare
from navit_clip.tokenizer import PaddedTokenizer
from navit_clip.weights import LoadedModel

IMAGE_FILE, TEXT_FILE = "image.onnx", "text.onnx"


class _ImageGraph(nn.Module):
    def __init__(self, tower: NavitSiglipVisionModel):
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        pooled = self.tower(pixel_values, spatial_shapes, pixel_attention_mask).pooler_output
        return F.normalize(pooled, dim=-1)


class _TextGraph(nn.Module):
    def __init__(self, tower: NavitSiglipTextModel):
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return F.normalize(self.tower(input_ids, attention_mask).pooler_output, dim=-1)


def write_onnx(loaded: LoadedModel, folder: Path, tower: TowerName, tokens_per_image: int) -> None:
    """Writes the graphs of a model of ours, of any kind, and its processor, into an existing empty folder.

    Raises:
        ConfigError: the packages for ONNX are not there.
        ExportError: transformers has no tokenizer like this model's.
    """
    _onnxruntime()
    save_processor(loaded, folder, tower, tokens_per_image)
    model, tokenizer = loaded
    config = own_config(model.config, isinstance(tokenizer, PaddedTokenizer), {})
    if tower != "text":
        vision = NavitSiglipVisionModel._from_config(config.vision_config)
        vision.load_state_dict(model.image.state_dict())
        patch_dim = 3 * model.config.image.patch_size**2
        inputs = {
            "pixel_values": torch.zeros(3, 6, patch_dim),
            "pixel_attention_mask": torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 4 + [0] * 2]),
            "spatial_shapes": torch.tensor([[2, 3], [1, 5], [2, 2]]),
        }
        images, patches = torch.export.Dim("images", min=1), torch.export.Dim("patches", min=2)
        axes = ({0: images, 1: patches}, {0: images, 1: patches}, {0: images})
        _write(_ImageGraph(vision), inputs, axes, folder / IMAGE_FILE)
    if tower != "image":
        text = NavitSiglipTextModel._from_config(config.text_config)
        text.load_state_dict(model.text.state_dict())
        length = model.config.text.context_length
        mask = torch.ones(3, length, dtype=torch.long)
        captions = torch.export.Dim("captions", min=1)
        inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": mask}
        _write(_TextGraph(text), inputs, ({0: captions}, {0: captions}), folder / TEXT_FILE)


def verify_onnx(
    loaded: LoadedModel,
    folder: Path,
    tower: TowerName,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[str],
    tokens_per_image: int,
) -> Verification:
    """Runs the graphs with onnxruntime and compares them with the model (see `compare`)."""
    attended_padding = isinstance(loaded.tokenizer, PaddedTokenizer)
    graphs = _Graphs(folder, loaded.model.config.text.context_length, attended_padding)
    return compare(loaded, graphs, tower, images, captions, tokens_per_image)


class _Graphs:
    """The graphs of a folder, and what makes their inputs."""

    def __init__(self, folder: Path, context_length: int, attended_padding: bool):
        self._folder = folder
        self._context_length = context_length
        self._attended_padding = attended_padding

    def scalars(self) -> dict[str, float]:
        return {}

    def encode_images(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Iterator[Float[Tensor, "images dim"]]:
        """As one padded batch, and every image alone and unpadded."""
        processor: Any = AutoImageProcessor.from_pretrained(self._folder)
        batch = processor(images=[Image.fromarray(image) for image in images], return_tensors="np")
        session = _session(self._folder / IMAGE_FILE)
        yield _run(session, dict(batch))
        vectors = []
        for number, grid in enumerate(batch["spatial_shapes"]):
            alone = {name: values[number : number + 1] for name, values in batch.items()}
            for name in ("pixel_values", "pixel_attention_mask"):
                alone[name] = alone[name][:, : grid.prod()]
            vectors.append(_run(session, alone))
        yield torch.cat(vectors)

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        batch = self._tokenized(captions)
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return [(row if self._attended_padding else row[mask.astype(bool)]).tolist() for row, mask in rows]

    def encode_captions(self, captions: Sequence[str]) -> Float[Tensor, "captions dim"]:
        return _run(_session(self._folder / TEXT_FILE), dict(self._tokenized(captions)))

    def _tokenized(self, captions: Sequence[str]) -> Any:
        tokenizer: Any = AutoTokenizer.from_pretrained(self._folder)
        settings = {"padding": "max_length", "truncation": True, "max_length": self._context_length}
        return tokenizer(list(captions), **settings, return_attention_mask=True, return_tensors="np")


def _write(graph: nn.Module, inputs: dict[str, Tensor], axes: tuple[dict[int, Any], ...], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[f"{path.stem}_embeds"],
            dynamic_shapes=axes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _session(path: Path) -> Any:
    return _onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: dict[str, Any]) -> Tensor:
    names = {node.name for node in session.get_inputs()}
    fed = {name: np.asarray(values) for name, values in inputs.items() if name in names}
    for name, values in fed.items():
        if values.dtype == np.int32:
            fed[name] = values.astype(np.int64)
    return torch.from_numpy(session.run(None, fed)[0])


def _onnxruntime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError:
        raise ConfigError("--format onnx: needs more packages: pip install 'navit-clip[onnx]'") from None
    return onnxruntime
