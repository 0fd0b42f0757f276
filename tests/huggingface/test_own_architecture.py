"""Models that SigLIP 2 cannot express, exported with their own modelling file: every kind of position."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from navit_clip.batch import Embeddings, PackedImages
from navit_clip.data import image_patches
from navit_clip.distributed import World
from navit_clip.errors import ExportError
from navit_clip.huggingface import modeling_navit_siglip
from navit_clip.huggingface.export import main as export
from navit_clip.huggingface.folder import write_own
from navit_clip.huggingface.importing import main as import_model
from navit_clip.huggingface.modeling_navit_siglip import NavitSiglipModel
from navit_clip.huggingface.own_architecture import (
    _POSITION,
    _TEXT,
    _TRANSFORMER,
    clip_config,
    own_config,
)
from navit_clip.loss import LossConfig, contrastive_loss
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from navit_clip.tokenizer import load_tokenizer, train_tokenizer
from navit_clip.weights import LoadedModel, load_model, save_model
from tests.data_builders import noise_picture
from tests.foreign_folders import CAPTIONS, shaken, siglip2_folder
from tests.packs import noise_captions, noise_images, pack, pack_captions, patches_of_pixels

COORDINATES = ("absolute", "fractional", "fractional_longer")
POSITIONS = [
    *(("learned", *choice) for choice in product(COORDINATES, ("sum", "stack", "product"))),
    *(("sinusoidal", coordinates, "stack") for coordinates in COORDINATES),
    *((kind, coordinates, "sum") for kind in ("fourier", "rope") for coordinates in COORDINATES),
    ("learned_2d", "fractional", "sum"),
    ("grid", "fractional", "sum"),
]
ONE_OF_EACH_KIND = [
    ("learned", "fractional_longer", "stack"),
    ("sinusoidal", "absolute", "stack"),
    ("fourier", "fractional", "sum"),
    ("rope", "fractional_longer", "sum"),
    ("learned_2d", "fractional", "sum"),
    ("grid", "fractional", "sum"),
]
GRIDS = [(1, 1), (1, 12), (12, 1), (7, 7), (11, 5), (12, 12)]
LENGTHS = [1, 2, 7, 31, 64]
TEXTS = [
    {},
    {"causal": True, "alignment": "left"},
    {"pooling": "map"},
    {"alignment": "left", "context_length": 70, "biases": True},
]


def built(
    position: tuple[str, str, str],
    biases: bool = False,
    qk_norm: bool = True,
    vocab_size: int = 600,
    depth: int = 2,
    **text,
) -> TwoTowers:
    """A small model whose weights are none of its initial zeros and ones."""
    kind, coordinates, combination = position
    size = {"depth": depth, "num_heads": 2, "mlp_dim": 40, "qk_norm": qk_norm, "biases": biases}
    table = PositionConfig(
        kind=kind,  # type: ignore[arg-type]
        coordinates=coordinates,  # type: ignore[arg-type]
        combination=combination,  # type: ignore[arg-type]
        table_side=16 if kind in ("sinusoidal", "rope") and coordinates == "absolute" else 12,
    )
    config = ClipConfig(
        image=ImageTowerConfig(**size, width=16, patch_size=4, position=table),
        text=TextTowerConfig(**{**size, **text}, width=24, vocab_size=vocab_size),
    )
    model = shaken(TwoTowers(config))
    assert isinstance(model, TwoTowers)
    return model


def remote(model: TwoTowers, **settings) -> NavitSiglipModel:
    config = own_config(model.config, attended_padding=False, token_ids={})
    theirs = NavitSiglipModel._from_config(config, **settings).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


def padded_images(images: PackedImages) -> dict[str, torch.Tensor]:
    rows = (images.patches / 127.5 - 1).split(images.offsets.diff().tolist())
    return {
        "pixel_values": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "pixel_attention_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True
        ),
        "spatial_shapes": images.grid.long(),
    }


def padded_captions(captions: list[list[int]], side: str, length: int) -> dict[str, torch.Tensor]:
    ids, masks = [], []
    for caption in captions:
        padding = [0] * (length - len(caption))
        mask = [1] * len(caption)
        ids.append([*padding, *caption] if side == "left" else [*caption, *padding])
        masks.append([*padding, *mask] if side == "left" else [*mask, *padding])
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


@pytest.mark.parametrize("position", POSITIONS, ids="-".join)
@torch.no_grad()
def test_every_position_padded_and_packed(position):
    model = built(position, biases=position[0] == "rope")
    theirs = remote(model)
    images = pack(noise_images(GRIDS, patch_size=4))
    expected = model.image(images)
    padded = theirs.get_image_features(**padded_images(images)).pooler_output
    torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)
    pixels = (images.patches / 127.5 - 1)[None]
    packed = theirs.get_image_features(pixels, images.grid.long(), cu_seqlens=images.offsets.long())
    torch.testing.assert_close(packed.pooler_output, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.last_hidden_state[0], model.image.tokens(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", TEXTS, ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_every_text_tower_padded_either_side_and_packed(text, implementation):
    model = built(ONE_OF_EACH_KIND[0], **text)
    theirs = remote(model, attn_implementation=implementation)
    captions = noise_captions(LENGTHS, 600)
    packed = pack_captions(captions)
    expected = model.text(packed)
    length = model.config.text.context_length
    for side in ("left", "right"):  # as tokenizers may pad
        inputs = padded_captions(captions, side, length)
        torch.testing.assert_close(
            theirs.get_text_features(**inputs).pooler_output, expected, atol=1e-5, rtol=1e-5
        )
    row = theirs.get_text_features(packed.ids.long()[None], cu_seqlens=packed.offsets.long())
    torch.testing.assert_close(row.pooler_output, expected, atol=1e-5, rtol=1e-5)


class FlashCalls:
    """flash-attn's two functions, in plain torch: what they were given, and what they should give."""

    def __init__(self):
        self.packs: list[tuple[list[int], int, bool]] = []
        """Of each call on a pack: offsets, longest, causal."""
        self.dense = 0

    def varlen(
        self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
        softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False,
    ):  # fmt: skip
        """Its documented contract: [tokens, heads, head_dim], int32 offsets from 0 to the total."""
        assert cu_seqlens_q.dtype == torch.int32
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert q.shape == k.shape == v.shape
        offsets = cu_seqlens_q.tolist()
        assert (offsets[0], offsets[-1]) == (0, len(q))
        assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
        assert (dropout_p, softmax_scale) == (0.0, q.shape[-1] ** -0.5)
        self.packs.append((offsets, int(max_seqlen_q), causal))
        parts = [
            F.scaled_dot_product_attention(
                *(part[start:end].transpose(0, 1) for part in (q, k, v)), is_causal=causal
            )
            for start, end in pairwise(offsets)
        ]
        return torch.cat([part.transpose(0, 1) for part in parts])

    def whole(self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, deterministic=False):
        """[rows, tokens, heads, head_dim], all of them real."""
        self.dense += 1
        parts = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(*parts, is_causal=causal).transpose(1, 2)


@pytest.fixture
def flash(monkeypatch) -> FlashCalls:
    """transformers' flash attention as it is, up to the kernels, which need a GPU."""
    from transformers import modeling_flash_attention_utils as theirs

    calls = FlashCalls()
    functions = {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": calls.whole,
        "_flash_varlen_fn": calls.varlen,
        "_pad_fn": theirs._pad_input,
        "_unpad_fn": theirs._unpad_input,
        "_process_flash_kwargs_fn": theirs._lazy_define_process_function(calls.varlen),
    }
    for name, function in functions.items():
        monkeypatch.setattr(theirs, name, function)
    return calls


def with_flash(model: TwoTowers) -> NavitSiglipModel:
    theirs = remote(model)
    for config in (theirs.config, theirs.config.vision_config, theirs.config.text_config):
        config._attn_implementation_internal = "flash_attention_2"
    assert theirs.image.transformer.config._attn_implementation == "flash_attention_2"
    return theirs


@pytest.mark.parametrize("position", [ONE_OF_EACH_KIND[0], ("rope", "fractional", "sum")], ids="-".join)
@torch.no_grad()
def test_images_reach_flash_attention_packed(position, flash):
    model = built(position)
    theirs = with_flash(model)
    images = pack(noise_images(GRIDS, patch_size=4))
    expected = model.image(images)
    pixels = (images.patches / 127.5 - 1)[None]
    packed = theirs.get_image_features(pixels, images.grid.long(), cu_seqlens=images.offsets.long())
    torch.testing.assert_close(packed.pooler_output, expected, atol=1e-5, rtol=1e-5)
    as_it_is = (images.offsets.tolist(), 144, False)
    assert flash.packs == [as_it_is] * 2  # a call for each block, of no other lengths
    padded = theirs.get_image_features(**padded_images(images)).pooler_output
    torch.testing.assert_close(padded, expected, atol=1e-5, rtol=1e-5)
    assert flash.packs == [as_it_is] * 4  # padding was taken out first
    assert not flash.dense


@pytest.mark.parametrize("text", TEXTS, ids=str)
@torch.no_grad()
def test_captions_reach_flash_attention_packed(text, flash):
    model = built(ONE_OF_EACH_KIND[0], **text)
    theirs = with_flash(model)
    captions = noise_captions(LENGTHS, 600)
    packed = pack_captions(captions)
    expected = model.text(packed)
    row = theirs.get_text_features(packed.ids.long()[None], cu_seqlens=packed.offsets.long())
    torch.testing.assert_close(row.pooler_output, expected, atol=1e-5, rtol=1e-5)
    as_it_is = (packed.offsets.tolist(), 64, bool(text.get("causal")))
    assert flash.packs == [as_it_is] * 2
    for side in ("left", "right"):
        inputs = padded_captions(captions, side, model.config.text.context_length)
        theirs_of = theirs.get_text_features(**inputs).pooler_output
        torch.testing.assert_close(theirs_of, expected, atol=1e-5, rtol=1e-5)
    assert flash.packs == [as_it_is] * 6
    of_one_length = theirs.get_text_features(torch.full((3, 9), 7)).pooler_output
    same = remote(model).get_text_features(torch.full((3, 9), 7)).pooler_output
    torch.testing.assert_close(of_one_length, same, atol=1e-5, rtol=1e-5)
    assert flash.dense == 2


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ]
)
def flash_device(request) -> torch.device:
    """Where flash attention runs: stood in for on a CPU, itself on a GPU."""
    if request.param == "cpu":
        request.getfixturevalue("flash")
    else:
        pytest.importorskip("flash_attn")
    return torch.device(request.param)


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_flash_attention_is_near_sdpa_in_bfloat16(text, flash_device):
    """Vectors and gradients of padded and of packed images and captions."""
    model = built(("rope", "fractional", "sum"), **text)
    images, captions = pack(noise_images(GRIDS, patch_size=4)), noise_captions(LENGTHS, 600)
    one_row = pack_captions(captions)
    padded = {**padded_images(images), **padded_captions(captions, "left", model.config.text.context_length)}
    packed = {
        "pixel_values": (images.patches / 127.5 - 1)[None],
        "spatial_shapes": images.grid.long(),
        "image_cu_seqlens": images.offsets.long(),
        "input_ids": one_row.ids.long()[None],
        "text_cu_seqlens": one_row.offsets.long(),
    }
    found = {}
    for implementation in ("sdpa", "flash_attention_2"):
        if implementation == "sdpa" or flash_device.type == "cuda":
            theirs = remote(model, attn_implementation=implementation)
        else:
            theirs = with_flash(model)
        theirs = theirs.to(flash_device, torch.bfloat16)
        found[implementation] = []
        for inputs in (padded, packed):
            outputs = theirs(**{name: values.to(flash_device) for name, values in inputs.items()})
            vectors = outputs.image_embeds, outputs.text_embeds
            weights = theirs.image.patch_embedding.weight, theirs.text.token_embedding.weight
            total = sum((part * part.detach().roll(1, 0)).sum() for part in vectors)
            found[implementation] += [*vectors, *torch.autograd.grad(total, weights)]
    for flash, sdpa in zip(found["flash_attention_2"], found["sdpa"], strict=True):
        assert (flash - sdpa).float().norm() <= 2e-2 * sdpa.float().norm()


def test_every_setting_comes_back():
    model = built(
        ("rope", "fractional_longer", "sum"), biases=True, causal=True, pooling="map", alignment="left"
    )
    config = own_config(model.config, attended_padding=True, token_ids={"pad_token_id": 3})
    assert clip_config(json.loads(config.to_json_string(use_diff=False))) == model.config
    assert config.text_config.attended_padding


def test_no_setting_of_the_towers_is_forgotten():
    """One that is added to them has to reach the modelling file, or be named here as of no consequence."""
    names = {field.name for kind in (ImageTowerConfig, TextTowerConfig) for field in fields(kind)}
    assert names - {*_TRANSFORMER, *_TEXT} == {"patch_size", "position", "checkpoint_blocks"}
    assert {field.name for field in fields(PositionConfig)} == {*_POSITION}


TOWERS = {"both": ("", None), "image": ("image", "pooler_output"), "text": ("text", "pooler_output")}
"""Of each class: where it is in a pair, and what it gives; a pair gives logits and a loss."""


def of_class(tower: str, implementation: str = "sdpa") -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A model of one class with the same weights each time, and a padded batch for it."""
    name, _ = TOWERS[tower]
    torch.manual_seed(1)
    model = built(("rope", "fractional", "sum"), causal=True)
    pair = remote(model, attn_implementation=implementation)
    images = padded_images(pack(noise_images(GRIDS, patch_size=4)))
    captions = padded_captions(noise_captions([3, 9, 64, 2, 5, 7], 600), "left", 64)
    inputs = {"both": {**images, **captions, "return_loss": True}, "image": images, "text": captions}
    return getattr(pair, name) if name else pair, inputs[tower]


def result(model: PreTrainedModel, tower: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return getattr(model(**inputs), TOWERS[tower][1] or "logits_per_image")


@pytest.mark.parametrize("tower", list(TOWERS))
def test_gradient_checkpointing_changes_no_gradient(tower):
    gradients = []
    for checkpointing in (False, True):
        theirs, inputs = of_class(tower)
        theirs.train()
        if checkpointing:
            theirs.activation_checkpointing_enable()
            assert theirs.is_activation_checkpointing
        result(theirs, tower, inputs).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in theirs.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tower", list(TOWERS))
@torch.no_grad()
def test_attention_implementations_agree(tower):
    (one, inputs), (other, _) = of_class(tower, "sdpa"), of_class(tower, "eager")
    assert {one.config._attn_implementation, other.config._attn_implementation} == {"sdpa", "eager"}
    torch.testing.assert_close(result(one, tower, inputs), result(other, tower, inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tower", list(TOWERS))
@torch.no_grad()
def test_what_was_saved_is_loaded_whole(tower, tmp_path):
    theirs, inputs = of_class(tower)
    theirs.save_pretrained(tmp_path)
    trusted = {"trust_remote_code": True, "output_loading_info": True}
    back, told = AutoModel.from_pretrained(tmp_path, **trusted)
    assert type(back).__name__ == type(theirs).__name__
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, weight in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    torch.testing.assert_close(result(back.eval(), tower, inputs), result(theirs, tower, inputs))


@pytest.mark.parametrize("tower", ["image", "text"])
@torch.no_grad()
def test_a_pair_s_folder_opens_as_one_tower(tower, tmp_path):
    of_class("both")[0].save_pretrained(tmp_path)
    theirs, inputs = of_class(tower)
    name = f"modeling_navit_siglip.{type(theirs).__name__}"
    alone, told = get_class_from_dynamic_module(name, tmp_path).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(result(alone.eval(), tower, inputs), result(theirs, tower, inputs))


@pytest.mark.parametrize("tower", list(TOWERS))
def test_input_embeddings_can_be_replaced(tower):
    theirs, _ = of_class(tower)
    other = nn.Identity()
    theirs.set_input_embeddings(other)
    assert theirs.get_input_embeddings() is other


def test_the_loss_is_that_of_training():
    theirs, inputs = of_class("both")
    outputs = theirs(**inputs)
    vectors = outputs.image_embeds, outputs.text_embeds, torch.arange(len(outputs.image_embeds))
    embeddings = Embeddings(*vectors, theirs.logit_scale.exp(), theirs.logit_bias)
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    expected = contrastive_loss(LossConfig(), embeddings, [len(embeddings.image)], alone)
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("tower", list(TOWERS))
def test_every_weight_is_initialised(tower):
    """By the class itself, from the config alone: transformers makes weights without values first."""
    theirs, _ = of_class(tower)
    with torch.device("meta"):
        fresh = type(theirs)(theirs.config)
    fresh.to_empty(device="cpu")
    for parameter in fresh.parameters():
        parameter.data.fill_(torch.nan)
    fresh.apply(fresh._init_weights)
    assert all(torch.isfinite(parameter).all() for parameter in fresh.parameters())


@torch.no_grad()
def test_hidden_states_and_attentions_are_given_when_asked_for():
    theirs = remote(built(("grid", "fractional", "sum")), attn_implementation="eager")
    images = padded_images(pack(noise_images(GRIDS, patch_size=4)))
    outputs = theirs.image(**images, output_hidden_states=True, output_attentions=True)
    longest = images["pixel_values"].shape[1]
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(6, longest, 16)] * 3
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(6, 2, longest, longest)] * 2
    as_tuple = theirs.image(**images, return_dict=False)
    torch.testing.assert_close(as_tuple[1], outputs.pooler_output)


@pytest.mark.parametrize("tower", ["both", "text"])
@torch.no_grad()
def test_token_embeddings_can_be_resized(tower, tmp_path):
    """Larger and smaller; what is left of them stays, and what is saved has the new size."""
    theirs, inputs = of_class(tower)
    inputs["input_ids"] = inputs["input_ids"] % 500
    before = result(theirs, tower, inputs)
    for size in (640, 500):
        theirs.resize_token_embeddings(size)
        assert theirs.get_input_embeddings().weight.shape == (size, 24)
        assert theirs.config.get_text_config().vocab_size == size
        torch.testing.assert_close(result(theirs, tower, inputs), before)
        theirs.save_pretrained(tmp_path / str(size))
        back = AutoModel.from_pretrained(tmp_path / str(size), trust_remote_code=True).eval()
        assert back.get_input_embeddings().weight.shape == (size, 24)
        torch.testing.assert_close(result(back, tower, inputs), before)


@torch.no_grad()
def test_bfloat16_stays_close(tmp_path):
    theirs = remote(built(("fourier", "fractional", "sum")))
    images = padded_images(pack(noise_images(GRIDS, patch_size=4)))
    expected = F.normalize(theirs.get_image_features(**images).pooler_output, dim=-1)
    theirs.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16, trust_remote_code=True).eval()
    vectors = F.normalize(half.get_image_features(**images).pooler_output.float(), dim=-1)
    assert (vectors * expected).sum(-1).min() > 0.99


def test_a_pack_with_wrong_offsets_is_refused():
    theirs = remote(built(("grid", "fractional", "sum")))
    with pytest.raises(ValueError, match="cu_seqlens: expected one row of 5 tokens, found 1 of 4"):
        theirs.get_text_features(torch.ones(1, 4, dtype=torch.long), cu_seqlens=torch.tensor([0, 2, 5]))
    patches, offsets = torch.zeros(1, 6, 48), torch.tensor([0, 4, 6])
    for grids, message in (
        ([[2, 3]], r"spatial_shapes: expected rows and columns of 2 images, \[2, 2\], found \[1, 2\]$"),
        ([[2, 2], [2, 2]], "spatial_shapes: expected a grid of image 1's 2 patches, found 2 x 2$"),
    ):
        with pytest.raises(ValueError, match=message):
            theirs.get_image_features(patches, torch.tensor(grids), cu_seqlens=offsets)
    with pytest.raises(ValueError, match=r"a grid of image 0's 5 patches, found 2 x 3$"):
        theirs.get_image_features(patches, torch.tensor([[2, 3]]), torch.tensor([[1] * 5 + [0]]))


@pytest.mark.parametrize("position", [("learned_2d", "fractional", "sum"), ("learned", "absolute", "sum")])
def test_a_grid_beyond_the_table_is_refused(position):
    theirs = remote(built(position))
    images = padded_images(pack(noise_images([(3, 13)], patch_size=4)))
    with pytest.raises(
        ValueError, match="rows and columns of an image's grid: expected at most 12, found 13"
    ):
        theirs.get_image_features(**images)


@pytest.mark.parametrize("attended_padding", [False, True])
@pytest.mark.parametrize("alignment", ["left", "right"])
def test_a_caption_beyond_the_context_is_refused(alignment, attended_padding):
    model = built(ONE_OF_EACH_KIND[0], alignment=alignment)
    theirs = NavitSiglipModel._from_config(own_config(model.config, attended_padding, token_ids={}))
    captions = padded_captions(noise_captions([65, 7], 600), "right", 70)
    with pytest.raises(ValueError, match=r"tokens of a caption: expected at most 64, found (65|70)"):
        theirs.get_text_features(**captions)


def test_an_older_transformers_is_told_what_it_lacks(monkeypatch, root):
    monkeypatch.setattr("importlib.metadata.version", lambda package: "5.5.4")
    with pytest.raises(ImportError, match=r"transformers>=5\.6 is required .* found transformers==5\.5\.4"):
        runpy.run_path(modeling_navit_siglip.__file__)
    assert '"transformers>=5.6",' in (root / "pyproject.toml").read_text()


def on_its_device(module: nn.Module, arguments: tuple, settings: dict) -> tuple:
    """As accelerate's hooks do it under a device_map: what has a `to` is moved before each part."""
    device = next(module.parameters()).device
    moved = [value.to(device, non_blocking=False) if hasattr(value, "to") else value for value in arguments]
    return tuple(moved), {
        name: value.to(device, non_blocking=False) if hasattr(value, "to") else value
        for name, value in settings.items()
    }


@pytest.mark.parametrize("position", [("grid", "fractional", "sum"), ("rope", "fractional", "sum")])
def test_every_part_may_have_a_device_of_its_own(position, monkeypatch):
    """Neighbours at least, of eight devices that torch knows to be different; the tensors hold nothing."""
    model = built(position, causal=True)
    config = own_config(model.config, attended_padding=False, token_ids={})
    monkeypatch.setattr(modeling_navit_siglip, "is_graph", lambda: True)  # nothing in them to be checked
    images = padded_images(pack(noise_images(GRIDS, patch_size=4)))
    captions = padded_captions(noise_captions([3, 9, 64, 2, 5, 7], 600), "left", 64)
    with FakeTensorMode(allow_non_fake_inputs=True):
        theirs = NavitSiglipModel._from_config(config)
        whole = [part for part in theirs.modules() if type(part).__name__ in theirs._no_split_modules]
        inside = {id(module) for part in whole for module in part.modules()}
        leaves = [part for part in theirs.modules() if id(part) not in inside and not [*part.children()]]
        parts = [part for part in whole + leaves if [*part.parameters()]]
        for number, part in enumerate(parts):
            for module in part.modules():
                for name, weight in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(torch.empty_like(weight, device=f"cuda:{number % 8}")))
            part.register_forward_pre_hook(on_its_device, with_kwargs=True)
        logits = theirs(**images, **captions).logits_per_image
    assert len(parts) > 8
    assert logits.shape == (6, 6)


OPEN_ELSEWHERE = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("navit_clip", "training", "eval"):
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Blocker())
work, *folders = sys.argv[1:]
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, pipeline

captions = json.load(open(f"{work}/captions.json"))
images = [Image.open(f"{work}/{number}.png") for number in range(4)]
trusted = {"trust_remote_code": True}
opened = {}
for folder in folders:
    model = AutoModel.from_pretrained(folder, **trusted).eval()
    processor = AutoProcessor.from_pretrained(folder, **trusted)
    inputs = processor(text=captions, images=images, return_tensors="pt")
    assert type(AutoConfig.from_pretrained(folder, **trusted)).__name__ == "NavitSiglipConfig"
    with torch.no_grad():
        outputs = model(**inputs)
        slow_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **trusted)
        slow = slow_processor(images=images, return_tensors="pt")
        from_slow = model.get_image_features(**slow).pooler_output
        model.save_pretrained(f"{folder}-again")
        processor.save_pretrained(f"{folder}-again")
        again = AutoModel.from_pretrained(f"{folder}-again", **trusted).eval()
        assert torch.equal(again(**inputs).logits_per_image, outputs.logits_per_image)
    opened[folder] = {
        "image": outputs.image_embeds,
        "slow": dict(slow),
        "of_slow": torch.nn.functional.normalize(from_slow, dim=-1),
        "text": outputs.text_embeds,
    }
classify = pipeline("zero-shot-image-classification", model=folders[0], **trusted)
ranked = classify(images[0], candidate_labels=captions[:3], hypothesis_template="{}")
scores = {entry["label"]: entry["score"] for entry in ranked}
opened["scores"] = [scores[caption] for caption in captions[:3]]
torch.save(opened, f"{work}/opened.pt")
"""


@torch.no_grad()
def test_a_process_without_this_package_gets_our_embeddings(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=600)
    captions = ["A  dog", "two cats in a field", "", "<eos> naïve 日本語"]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    pictures = [
        noise_picture(*size, seed) for seed, size in enumerate([(40, 60), (31, 17), (16, 16), (44, 30)])
    ]
    encoded = []
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        encoded.append((tmp_path / f"{number}.png").read_bytes())
    models, folders = [], []
    for position in ONE_OF_EACH_KIND:
        models.append(built(position))
        folders.append(str(tmp_path / f"{position[0]}-exported"))
        Path(folders[-1]).mkdir()
        write_own(LoadedModel(models[-1], tokenizer), Path(folders[-1]), "both", tokens_per_image=50)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", OPEN_ELSEWHERE, tmp_path, *folders]
    subprocess.run(command, check=True, env=environment)
    opened = torch.load(tmp_path / "opened.pt")
    images = PackedImages.pack([image_patches(data, 4, 50) for data in encoded])
    ids = pack_captions(tokenizer.encode(captions, 64))
    for model, folder in zip(models, folders, strict=True):
        of_images = model.encode_images(images)
        torch.testing.assert_close(opened[folder]["image"], of_images, atol=1e-5, rtol=0)
        slow = model.encode_images(PackedImages.pack(patches_of_pixels(opened[folder]["slow"])))
        torch.testing.assert_close(opened[folder]["of_slow"], slow, atol=1e-5, rtol=0)
        torch.testing.assert_close(opened[folder]["text"], model.encode_captions(ids), atol=1e-5, rtol=0)
    image, text = models[0].encode_images(images), models[0].encode_captions(ids)
    expected = (models[0].logit_scale.exp() * image @ text.T + models[0].logit_bias)[0, :3].sigmoid()
    torch.testing.assert_close(torch.tensor(opened["scores"]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", list(TOWERS))
def test_the_snippet_of_the_model_card_runs(tmp_path, tower, monkeypatch, capsys):
    model = built(("rope", "fractional", "sum"), causal=True, context_length=77)
    save_model(model, train_tokenizer(CAPTIONS, 600), tmp_path / "model")
    export([str(tmp_path / "model"), str(tmp_path / "towers"), "--format", "own", "--tower", tower])
    card = (tmp_path / "towers" / "README.md").read_text()
    assert "needs transformers 5.6 or newer" in card
    Image.fromarray(noise_picture(40, 60)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0], {})
    expected = {"both": "torch.Size([1, 16]) torch.Size([2, 16])", "image": "torch.Size([1, 16])"}
    assert capsys.readouterr().out.startswith(expected.get(tower, "torch.Size([2, 16])"))


def test_what_leaves_comes_in_again(tmp_path, capsys):
    model = built(("fourier", "fractional_longer", "sum"), vocab_size=49408, context_length=77)
    save_model(model, load_tokenizer("open_clip"), tmp_path / "model")
    export([str(tmp_path / "model"), str(tmp_path / "out"), "--format", "own"])
    assert import_model([str(tmp_path / "out"), str(tmp_path / "back")]) == 0
    back = load_model(tmp_path / "back")
    assert back.model.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], weight)
    captions = ["A dog's photo", "naïve 日本語", "word " * 90]
    assert back.tokenizer.encode(captions, 77) == load_tokenizer("open_clip").encode(captions, 77)


def test_padded_captions_leave_and_come_back_padded(tmp_path):
    siglip2_folder(tmp_path / "google")
    import_model([str(tmp_path / "google"), str(tmp_path / "ours")])
    export([str(tmp_path / "ours"), str(tmp_path / "out"), "--format", "own"])
    import_model([str(tmp_path / "out"), str(tmp_path / "back")])
    ours, back = load_model(tmp_path / "ours"), load_model(tmp_path / "back")
    assert back.tokenizer.encode(CAPTIONS, 64) == ours.tokenizer.encode(CAPTIONS, 64)


@pytest.mark.parametrize("form", ["siglip2", "own"])
def test_large_models_leave_in_shards(tmp_path, monkeypatch, form):
    monkeypatch.setattr("navit_clip.huggingface.folder.MAX_SHARD_SIZE", "20KB")
    model = built(("grid", "fractional", "sum"), qk_norm=False)
    save_model(model, train_tokenizer(CAPTIONS, 600), tmp_path / "model")
    export([str(tmp_path / "model"), str(tmp_path / "out"), "--format", form])
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    import_model([str(tmp_path / "out"), str(tmp_path / "back")])
    weights = load_model(tmp_path / "back").model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weights[name], weight), name


def test_the_refusal_of_a_native_export_names_the_other_way(tmp_path):
    save_model(built(("rope", "fractional", "sum")), train_tokenizer(CAPTIONS, 600), tmp_path / "model")
    with pytest.raises(ExportError, match="--format own"):
        export([str(tmp_path / "model"), str(tmp_path / "out")])
    assert not Path(tmp_path / "out").exists()
