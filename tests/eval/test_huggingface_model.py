"""Hugging Face folders: their vectors are transformers' own, whichever way they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eval.embed import embed_captions, embed_images
from eval.huggingface_model import SquareModel, load_huggingface
from eval.image_config import ImageConfig
from eval.loading import load_judged, model_home
from eval.model import PackedModel
from eval.samples import ShardSamples
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.huggingface.folder import write_own, write_siglip2
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from navit_clip.tokenizer import PaddedTokenizer
from navit_clip.weights import LoadedModel
from tests.data_builders import SIZES, noise_picture, small_tokenizer
from tests.eval_builders import write_labelled

transformers = pytest.importorskip("transformers")

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
CAPTIONS = ["picture number 3", "a photo of it", "a", "picture number 12, a photo of it"]
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64}


def load(folder: Path):
    return load_judged(str(folder), ALONE.device, torch.float32)


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """The same model with weights far from their first values, so that every input tells."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "logit" not in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def pictures() -> list[Image.Image]:
    return [Image.fromarray(noise_picture(*SIZES[number], seed=number)) for number in range(7)]


def our_image_vectors(model, folder: Path, tokens: int) -> torch.Tensor:
    samples = ShardSamples([write_labelled(folder / "images.tar", [0] * 7)], None, labels=True)
    config = ImageConfig(tokens_per_image=tokens, token_budget=4 * tokens, num_workers=0)
    return embed_images(model, samples, ALONE, config).vectors


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A model of ours as a plain `Siglip2Model`, with its processor."""
    folder = tmp_path_factory.mktemp("exported")
    image = ImageTowerConfig(**TOWER, patch_size=4, position=PositionConfig(kind="grid", table_side=4))
    text = TextTowerConfig(**TOWER, vocab_size=small_tokenizer().vocab_size)
    model = spread(TwoTowers(ClipConfig(image=image, text=text)))
    write_siglip2(LoadedModel(model, small_tokenizer()), folder, "both", tokens_per_image=16)
    return folder


def test_a_siglip2_folder_runs_packed_as_transformers_runs_it(exported, tmp_path):
    ours = load(exported)
    assert isinstance(ours, PackedModel)
    theirs = transformers.Siglip2Model.from_pretrained(exported).eval()
    processor = transformers.AutoProcessor.from_pretrained(exported)
    inputs = processor(
        images=pictures(), text=CAPTIONS, padding="max_length", max_length=64, return_tensors="pt"
    )
    with torch.no_grad():
        outputs = theirs(**inputs)
    captions = embed_captions(ours, CAPTIONS, ALONE, token_budget=64)
    torch.testing.assert_close(captions, outputs.text_embeds, atol=1e-5, rtol=0)
    images = our_image_vectors(ours, tmp_path, tokens=16)
    torch.testing.assert_close(images, outputs.image_embeds, atol=1e-5, rtol=0)
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())


@pytest.mark.parametrize("padded", [False, True])
def test_an_export_with_code_runs_packed_and_its_code_does_not(tmp_path, padded):
    """What SigLIP 2 cannot express, as it left: the same vectors as the model that was exported."""
    image = ImageTowerConfig(**TOWER, patch_size=4, qk_norm=True, position=PositionConfig(kind="rope"))
    text = TextTowerConfig(**TOWER, vocab_size=small_tokenizer().vocab_size, pooling="map")
    model = spread(TwoTowers(ClipConfig(image=image, text=text)))
    tokenizer = PaddedTokenizer(small_tokenizer(), pad_id=0) if padded else small_tokenizer()
    folder = tmp_path / "export"
    folder.mkdir()
    write_own(LoadedModel(model, tokenizer), folder, "both", tokens_per_image=16)
    (code,) = folder.glob("*.py")
    code.write_text("raise AssertionError('run')")
    ours, exported = load(folder), PackedModel(model, tokenizer)
    assert {len(caption) for caption in ours.tokenize(CAPTIONS)} == {64} or not padded
    for each in (CAPTIONS, CAPTIONS[:1]):
        found, expected = (embed_captions(m, each, ALONE, token_budget=256) for m in (ours, exported))
        torch.testing.assert_close(found, expected)
    found, expected = (our_image_vectors(m, tmp_path, tokens=16) for m in (ours, exported))
    torch.testing.assert_close(found, expected)


def test_padding_on_the_right_is_attended(exported, tmp_path):
    """As Google's text towers were trained: every caption has 64 tokens."""
    folder = tmp_path / "google"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "right"}))
    ours = load(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.Siglip2Model.from_pretrained(folder).eval()
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        features = theirs.get_text_features(input_ids=ids)
    expected = F.normalize(getattr(features, "pooler_output", features), dim=-1)
    assert {len(caption) for caption in ours.tokenize(CAPTIONS)} == {64}
    captions = embed_captions(ours, CAPTIONS, ALONE, token_budget=128)
    torch.testing.assert_close(captions, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def square(request, tmp_path_factory) -> Path:
    """A random `CLIPModel` or `SiglipModel` with an image processor and a tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    small_tokenizer().save(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(folder)
    text = {**SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0, "bos_token_id": 2}
    vision = {**SIZE, "image_size": 32, "patch_size": 8}
    if request.param == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = transformers.CLIPModel(config)
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    spread(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_square_model_runs_as_transformers_runs_it(square, tmp_path):
    ours = load(square)
    assert isinstance(ours, SquareModel)
    theirs = transformers.AutoModel.from_pretrained(square).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(square)
    tokenizer = transformers.AutoTokenizer.from_pretrained(square)
    ids = tokenizer(CAPTIONS, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        outputs = theirs(
            input_ids=ids, pixel_values=processor(pictures(), return_tensors="pt")["pixel_values"]
        )
    captions = embed_captions(ours, CAPTIONS, ALONE, token_budget=48)
    torch.testing.assert_close(captions, outputs.text_embeds, atol=1e-5, rtol=0)
    images = our_image_vectors(ours, tmp_path, tokens=16)
    torch.testing.assert_close(images, outputs.image_embeds, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"keep: .* takes every image at one size"):
        ours.preparation(ImageConfig(keep=0.5))


@pytest.mark.parametrize(("tower", "lacks"), [("image", "text"), ("text", "image")])
def test_a_tower_alone_cannot_be_judged(exported, tmp_path, tower, lacks):
    model = load(exported)
    write_siglip2(LoadedModel(model.module, small_tokenizer()), tmp_path, tower, tokens_per_image=16)
    with pytest.raises(CheckpointError, match=f"has no {lacks} tower; zero-shot evaluation needs both"):
        load(tmp_path)


def test_folders_of_other_models(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        CheckpointError, match="expected a model of type clip, siglip, siglip2, navit_siglip, found 'bert'"
    ):
        load_huggingface(tmp_path, "bert", ALONE.device, torch.float32)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a readable model config"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "navit_siglip_text_model"}')
    with pytest.raises(CheckpointError, match="has no image tower"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(CheckpointError, match="transformers cannot read it"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "absent")


def test_where_results_of_a_model_go(tmp_path):
    assert model_home(str(tmp_path)) == tmp_path
    assert model_home("open_clip:ViT-B-32,a/b.pt") == Path("runs/open_clip-ViT-B-32-a-b.pt")
    with pytest.raises(CheckpointError, match="no such folder"):
        model_home(str(tmp_path / "absent"))
