"""open_clip's format: open_clip gives our vectors from an exported folder, and the folder comes in again."""

from __future__ import annotations

import json
import re
import shlex

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from navit_clip.config import load_config
from navit_clip.errors import ExportError
from navit_clip.huggingface.export import main as export
from navit_clip.huggingface.importing import main as import_model
from navit_clip.huggingface.open_clip_folder import TRUNKS
from navit_clip.model import TwoTowers
from navit_clip.tokenizer import PaddedTokenizer, load_tokenizer, train_tokenizer
from navit_clip.weights import load_model, save_model
from tests.data_builders import noise_picture
from tests.foreign_folders import CAPTIONS, siglip2_folder
from tests.huggingface.test_own_architecture import built
from tests.packs import noise_images, pack, pack_captions

GRIDS = [(1, 1), (1, 12), (7, 7), (5, 11), (12, 12), (20, 9)]
SENTENCES = ["A photo of 3 Dogs!", "", "cats " * 90, "naïve 日本語", "  two  spaces "]
CLIP_TEXT = {"causal": True, "alignment": "left", "context_length": 77, "vocab_size": 49408}
SUM, GRID = ("learned", "fractional", "sum"), ("grid", "fractional", "sum")


def opened(folder):
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    return model.eval(), transform, open_clip.get_tokenizer(name)


@pytest.mark.parametrize(
    ("position", "qk_norm", "biases"), [(SUM, True, False), (GRID, False, True)], ids=["navit", "siglip"]
)
@torch.no_grad()
def test_a_causal_tower_leaves_and_comes_back(tmp_path, position, qk_norm, biases, capsys):
    model = built(position, qk_norm=qk_norm, biases=biases, **CLIP_TEXT)
    save_model(model, load_tokenizer("open_clip"), tmp_path / "model")
    out = tmp_path / "out"
    assert (
        export([str(tmp_path / "model"), str(out), "--format", "open_clip", "--tokens-per-image", "50"]) == 0
    )
    assert "8 images of generated noise" in capsys.readouterr().out
    theirs, transform, tokenize = opened(out)
    for image in noise_images(GRIDS, patch_size=4):
        rows, columns = image.grid
        tiles = torch.from_numpy(image.pixels).view(rows, columns, 4, 4, 3)
        picture = tiles.permute(4, 0, 2, 1, 3).reshape(1, 3, 4 * rows, 4 * columns) / 127.5 - 1
        vector = theirs.encode_image(picture, normalize=True)
        torch.testing.assert_close(vector, model.encode_images(pack([image])), atol=1e-5, rtol=0)
    assert transform(Image.fromarray(noise_picture(40, 60))).shape == (3, 28, 28)
    ids = load_tokenizer("open_clip").encode(SENTENCES, 77)
    vectors = theirs.encode_text(tokenize(SENTENCES), normalize=True)
    torch.testing.assert_close(vectors, model.encode_captions(pack_captions(ids)), atol=1e-5, rtol=0)
    import_model([str(out), str(tmp_path / "back")])
    back = load_model(tmp_path / "back")
    assert back.tokenizer.encode(SENTENCES, 77) == ids
    images = pack(noise_images(GRIDS, patch_size=4))
    torch.testing.assert_close(
        back.model.encode_images(images), model.encode_images(images), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_an_imported_siglip2_leaves_with_its_tokenizer(tmp_path, monkeypatch, capsys):
    siglip2_folder(tmp_path / "google")
    import_model([str(tmp_path / "google"), str(tmp_path / "ours")])
    export([str(tmp_path / "ours"), str(tmp_path / "out"), "--format", "open_clip"])
    model, tokenizer = load_model(tmp_path / "ours")
    theirs, _, tokenize = opened(tmp_path / "out")
    ids = tokenize(SENTENCES)
    clean = [" ".join(sentence.split()) for sentence in SENTENCES]
    assert ids.tolist() == tokenizer.encode(clean, 64)
    vectors = theirs.encode_text(ids, normalize=True)
    torch.testing.assert_close(vectors, model.encode_captions(pack_captions(ids.tolist())), atol=1e-5, rtol=0)
    import_model([str(tmp_path / "out"), str(tmp_path / "back")])
    back = load_model(tmp_path / "back")
    assert isinstance(back.tokenizer, PaddedTokenizer)
    assert back.tokenizer.encode(SENTENCES, 64) == ids.tolist()
    for name, weight in model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], weight), name
    Image.fromarray(noise_picture(40, 60)).save(tmp_path / "photo.jpg")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: open_clip\n")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.startswith("torch.Size([1, 16]) torch.Size([2, 16])")


def test_the_folder_says_where_it_is(tmp_path, monkeypatch):
    save_model(built(SUM, **CLIP_TEXT), load_tokenizer("open_clip"), tmp_path / "model")
    pushed = []
    monkeypatch.setattr("navit_clip.huggingface.export.push", lambda *arguments: pushed.append(arguments))
    for push, name in (([], f"local-dir:{tmp_path / 'out'}"), (["--push", "me/small"], "hf-hub:me/small")):
        export([str(tmp_path / "model"), str(tmp_path / "out"), "--format", "open_clip", *push])
        config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
        assert config["model_cfg"]["vision_cfg"]["timm_model_name"] == name
    assert len(pushed) == 1


def test_timm_s_names_are_of_towers_of_their_shapes():
    import timm

    for name, shape in TRUNKS.items():
        with torch.device("meta"):
            trunk = timm.create_model(name, num_classes=0)
        block = trunk.blocks[0]
        found = (trunk.embed_dim, len(trunk.blocks), block.attn.num_heads, block.mlp.fc1.out_features)
        assert found == shape
        assert trunk.embeds.pos_embed.shape == (1, 16, 16, shape[0])
        assert trunk.embeds.patch_size == (16, 16)


def test_what_open_clip_lacks_is_listed(tmp_path):
    model = built(("rope", "fractional", "sum"), pooling="map")
    save_model(model, train_tokenizer(CAPTIONS, 600), tmp_path / "model")
    with pytest.raises(ExportError) as raised:
        export([str(tmp_path / "model"), str(tmp_path / "out"), "--format", "open_clip", "--tower", "image"])
    for line in (
        "model.image.position.kind is rope; train with learned or grid",
        "model.text.pooling is map; train with last",
        "model.text.causal is false; train with true",
        "model.text.alignment is right; train with left",
        "tokenizer is of the form siglip2; train with open_clip",
        "--tower is image; open_clip has pairs of towers alone",
        "--format own",
    ):
        assert line in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_recipe_of_the_docs_is_of_a_model_that_may_leave(root, tmp_path):
    """Its settings on the config that it names, and its export."""
    from training.config import RunConfig  # imports DeepSpeed

    blocks = re.findall(r"((?:^    .*\n)+)", (root / "docs" / "export.md").read_text(), re.M)
    recipe = next(block for block in blocks if "tokenizer=open_clip" in block)
    train, exporting = recipe.replace("\\\n", " ").splitlines()
    _, _, path, *settings = shlex.split(train)
    config = load_config(RunConfig, root / path, settings)
    tokenizer = load_tokenizer(config.tokenizer)
    assert tokenizer.vocab_size <= config.model.text.vocab_size
    save_model(TwoTowers(config.model), tokenizer, tmp_path / config.folder)
    _, _, run, out, *options = shlex.split(exporting)
    assert run == config.folder
    assert export([str(tmp_path / run), str(tmp_path / out), *options]) == 0


def test_weights_are_float32_safetensors(tmp_path):
    save_model(built(GRID, **CLIP_TEXT), load_tokenizer("open_clip"), tmp_path / "model")
    export([str(tmp_path / "model"), str(tmp_path / "out"), "--format", "open_clip"])
    weights = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("README.md", "config.json", "open_clip_config.json", "open_clip_model.safetensors"),
    ]
