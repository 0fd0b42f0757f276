"""Import: models of transformers and open_clip come in as they are, or not at all."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import Siglip2Config, SiglipConfig
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from navit_clip.batch import PackedImages, Patches
from navit_clip.cli import main as command
from navit_clip.data.patches import cut_grid, cut_patches
from navit_clip.errors import CheckpointError
from navit_clip.huggingface.export import main as export
from navit_clip.huggingface.import_verification import verify_import
from navit_clip.huggingface.importing import import_folder, main
from navit_clip.huggingface.own_architecture import own_config
from navit_clip.model import ClipConfig
from navit_clip.model.position_tables import GridPositions
from navit_clip.tokenizer import PaddedTokenizer, train_tokenizer
from navit_clip.weights import load_model
from tests.data_builders import noise_picture
from tests.foreign_folders import CONTEXT_LENGTH, open_clip_folder, siglip2_folder, siglip_folder
from tests.packs import noise_images, pack, pack_captions

SENTENCES = ["A photo of 3 Dogs", "", "cats " * 90, "<unused0> naïve 日本語", "two words."]
GRIDS = [(1, 1), (1, 64), (7, 7), (11, 22), (31, 9), (40, 40)]


def squares(grid: int, number: int = 3) -> list[Patches]:
    pictures = [noise_picture(4 * grid, 4 * grid, seed) for seed in range(number)]
    return [cut_grid(picture, 4, (grid, grid)) for picture in pictures]


def as_pixels(number: int, side: int) -> torch.Tensor:
    pictures = torch.stack([torch.from_numpy(noise_picture(side, side, seed)) for seed in range(number)])
    return pictures.permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def test_siglip2_comes_in_with_padded_captions(tmp_path, capsys):
    theirs = siglip2_folder(tmp_path / "google", max_shard_size="10KB")
    assert (tmp_path / "google" / "model.safetensors.index.json").exists()
    assert command(["import", str(tmp_path / "google"), str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr().out
    assert "captions padded to 64 tokens" in printed
    assert "7 images of noise, compared with the original: unit vectors at most" in printed
    model, tokenizer = load_model(tmp_path / "ours")
    images = noise_images(GRIDS, patch_size=4)
    expected = [
        theirs.vision_model(
            torch.from_numpy(image.pixels)[None] / 127.5 - 1,
            torch.ones(1, len(image)),
            torch.tensor([image.grid]),
        ).pooler_output
        for image in images
    ]
    of_images = model.encode_images(pack(images))
    torch.testing.assert_close(of_images, F.normalize(torch.cat(expected), dim=-1), atol=1e-5, rtol=0)

    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(tmp_path / "google")
    ids = own(SENTENCES, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH).input_ids
    assert tokenizer.encode(SENTENCES, CONTEXT_LENGTH) == ids
    assert tokenizer.encode(["A DOG"], 64) == tokenizer.encode(["a dog"], 64)
    of_captions = model.encode_captions(pack_captions(ids))
    expected = theirs.text_model(torch.tensor(ids)).pooler_output
    torch.testing.assert_close(of_captions, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def by_torch(table, spatial_shapes, max_length):
    """The positions of one image as older versions of transformers resize them."""
    (grid,) = spatial_shapes.tolist()
    resized = F.interpolate(table.permute(2, 0, 1)[None], size=grid, mode="bilinear", antialias=True)
    return resized.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("older", [False, True])
def test_images_one_column_wide_are_verified_too(tmp_path, monkeypatch, older):
    """By transformers' positions of the same image lying: older versions have none of it that are right."""
    siglip2_folder(tmp_path / "google")
    if older:
        monkeypatch.setattr(Siglip2VisionEmbeddings, "resize_positional_embeddings", staticmethod(by_torch))
    imported = import_folder(tmp_path / "google")
    verify_import(*imported)
    original = GridPositions.forward

    def wrong_in_one_column(self, images, image_index):
        one_column = (images.grid[image_index, 1] == 1) & (images.grid[image_index, 0] > 1)
        return original(self, images, image_index) * (1 - one_column[:, None].float())

    monkeypatch.setattr(GridPositions, "forward", wrong_in_one_column)
    with pytest.raises(CheckpointError, match="embeddings of images differ"):
        verify_import(*imported)


@pytest.mark.parametrize("image_size", [24, 26])
@torch.no_grad()
def test_fixed_resolution_siglip_comes_in(tmp_path, image_size):
    theirs = siglip_folder(tmp_path / "google", image_size)
    main([str(tmp_path / "google"), str(tmp_path / "ours")])
    model, tokenizer = load_model(tmp_path / "ours")
    pixels = F.pad(as_pixels(3, 24), (0, image_size - 24, 0, image_size - 24))
    expected = F.normalize(theirs.vision_model(pixels).pooler_output, dim=-1)
    torch.testing.assert_close(model.encode_images(pack(squares(6))), expected, atol=1e-5, rtol=0)
    assert tokenizer.encode(["A DOG"], 64) == tokenizer.encode(["a dog"], 64)
    assert isinstance(tokenizer, PaddedTokenizer)


@pytest.mark.parametrize(("trunk", "side"), [("small_siglip_tower", 24), ("small_naflex_tower", 16)])
@torch.no_grad()
def test_open_clip_comes_in(tmp_path, trunk, side):
    from open_clip import get_tokenizer

    theirs = open_clip_folder(tmp_path / "theirs", trunk)
    main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    model, tokenizer = load_model(tmp_path / "ours")
    expected = theirs.encode_image(as_pixels(3, side), normalize=True)
    torch.testing.assert_close(model.encode_images(pack(squares(side // 4))), expected, atol=1e-5, rtol=0)
    own = get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")(SENTENCES, CONTEXT_LENGTH)
    ids = tokenizer.encode(SENTENCES, CONTEXT_LENGTH)
    assert ids == own.tolist()
    expected = theirs.encode_text(own, normalize=True)
    torch.testing.assert_close(model.encode_captions(pack_captions(ids)), expected, atol=1e-5, rtol=0)


def test_what_of_open_clip_our_towers_lack_is_listed(tmp_path):
    changes = {"pool_type": "first", "act_kwargs": None, "scale_heads": True}
    open_clip_folder(tmp_path / "theirs", "small_odd_tower", **changes)
    with pytest.raises(CheckpointError) as raised:
        import_folder(tmp_path / "theirs")
    for fault in (
        "text_cfg.scale_heads: expected False, found True",
        "text_cfg.pool_type: expected last, found first",
        "text_cfg: has the exact GELU",
        "small_odd_tower has a norm before its blocks",
        "small_odd_tower has layer scale",
        "small_odd_tower has 1 class or register tokens",
        "small_odd_tower has another activation",
    ):
        assert fault in str(raised.value)


def test_clip_is_refused_with_reasons(tmp_path):
    config = {"embed_dim": 512, "vision_cfg": {"layers": 12, "width": 768, "patch_size": 32}, "text_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(CheckpointError, match="class token, a norm before its blocks") as raised:
        import_folder(tmp_path)
    assert "text_cfg.proj_bias: expected True, found False" in str(raised.value)
    assert "init_logit_bias" in str(raised.value)


def test_an_exact_gelu_comes_in_only_when_asked_for(tmp_path, capsys):
    open_clip_folder(tmp_path / "theirs", "small_exact_gelu_tower")
    with pytest.raises(CheckpointError, match="small_exact_gelu_tower has the exact GELU"):
        import_folder(tmp_path / "theirs")
    main([str(tmp_path / "theirs"), str(tmp_path / "ours"), "--tanh-gelu"])
    assert "4 images of noise" in capsys.readouterr().out


def test_an_import_that_reads_captions_otherwise_is_refused(tmp_path, monkeypatch):
    siglip2_folder(tmp_path / "google")
    other = train_tokenizer(["wholly other words"] * 9, vocab_size=600)
    monkeypatch.setattr("navit_clip.huggingface.importing._kept", lambda own: other)
    with pytest.raises(CheckpointError, match=r"the original's tokenizer reads 'a photo of a dog\.' as "):
        main([str(tmp_path / "google"), str(tmp_path / "ours")])
    assert not (tmp_path / "ours").exists()


@torch.no_grad()
def test_out_and_back(tmp_path):
    """An imported model leaves natively and comes in again, padded captions and all."""
    siglip2_folder(tmp_path / "google")
    main([str(tmp_path / "google"), str(tmp_path / "ours")])
    assert export([str(tmp_path / "ours"), str(tmp_path / "native")]) == 0
    main([str(tmp_path / "native"), str(tmp_path / "back")])
    first, second = load_model(tmp_path / "ours"), load_model(tmp_path / "back")
    ids = first.tokenizer.encode(SENTENCES, CONTEXT_LENGTH)
    assert second.tokenizer.encode(SENTENCES, CONTEXT_LENGTH) == ids
    images = pack(noise_images(GRIDS, patch_size=4))
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    of_images = first.model.encode_images(images)
    torch.testing.assert_close(second.model.encode_images(images), of_images, atol=0, rtol=0)


def test_the_export_of_an_imported_model_is_read_alike_by_transformers(tmp_path):
    from PIL import Image
    from transformers import AutoModel, AutoProcessor, pipeline

    siglip2_folder(tmp_path / "google")
    main([str(tmp_path / "google"), str(tmp_path / "ours")])
    export([str(tmp_path / "ours"), str(tmp_path / "native")])
    model, tokenizer = load_model(tmp_path / "ours")
    picture = noise_picture(40, 60)
    with torch.no_grad():
        patches = cut_patches(picture, 4, num_tokens=25)  # as many as the table has entries
        image = model.encode_images(PackedImages.pack([patches]))
        text = model.encode_captions(pack_captions(tokenizer.encode(SENTENCES, CONTEXT_LENGTH)))
        expected = (model.logit_scale.exp() * image @ text.T + model.logit_bias)[0].sigmoid()
    inputs = AutoProcessor.from_pretrained(tmp_path / "native")(
        text=SENTENCES, images=Image.fromarray(picture), return_tensors="pt"
    )
    assert "attention_mask" not in inputs
    outputs = AutoModel.from_pretrained(tmp_path / "native")(**inputs)
    torch.testing.assert_close(outputs.logits_per_image[0].sigmoid(), expected, atol=1e-5, rtol=0)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "native"))
    ranked = classify(
        Image.fromarray(picture), candidate_labels=["a dog", *SENTENCES[:1]], hypothesis_template="{}"
    )
    scores = {entry["label"]: entry["score"] for entry in ranked}
    assert scores[SENTENCES[0]] == pytest.approx(float(expected[0]), abs=1e-5)


class Exploding:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_pickles_are_read_only_when_asked_for_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "google"
    siglip2_folder(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled \(pytorch_model.bin\).*--allow-pickle"):
        import_folder(folder)
    torch.save({"learning_rate": 1e-3}, folder / "training_args.bin")  # which trainers leave beside them
    loaded = import_folder(folder, allow_pickle=True).loaded
    assert torch.equal(loaded.model.logit_bias, weights["logit_bias"])
    for dump in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))):
        dump({**weights, "logit_bias": Exploding()}, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"not readable as tensors alone: .* could run code$"):
            import_folder(folder, allow_pickle=True)
    assert not Path("exploded").exists()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"there is no model\.safetensors in it$"):
        import_folder(folder)
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:])):
        torch.save({name: weights[name] for name in part}, folder / f"pytorch_model-{number}.bin")
    files = {name: f"pytorch_model-{int(place > 8)}.bin" for place, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(CheckpointError, match=r"pickled \(pytorch_model-0.bin, pytorch_model-1.bin\)"):
        import_folder(folder)
    assert import_folder(folder, allow_pickle=True)


def test_code_in_a_folder_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "theirs"
    siglip2_folder(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "code.py").write_text("open('ran', 'w')\n")
    import_folder(folder)
    assert not Path("ran").exists()


def test_wrong_weights_are_listed(tmp_path):
    folder = tmp_path / "google"
    siglip2_folder(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["logit_bias"]
    weights["extra"] = torch.zeros(1)
    weights["text_model.head.bias"] = torch.zeros(3)
    weights["text_model.head.weight"] = weights["text_model.head.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        import_folder(folder)
    for fault in (
        "missing: logit_bias",
        "not of this model: extra",
        "expected floating-point numbers, found others: text_model.head.weight (torch.int8)",
        "text_model.head.bias (expected [16], found [3])",
    ):
        assert fault in str(raised.value)


def test_wrong_open_clip_weights_are_listed(tmp_path):
    folder = tmp_path / "theirs"
    open_clip_folder(folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    del weights["visual.trunk.attn_pool.kv.bias"]
    weights["text.cls_emb"] = torch.zeros(1)
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: visual.trunk.attn_pool.kv.bias\n  .*text.cls_emb"):
        import_folder(folder)


def test_a_half_copied_folder_is_listed(tmp_path):
    """All that is missing at once, then all that is broken."""
    folder = tmp_path / "google"
    siglip2_folder(folder, max_shard_size="10KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    for name in (*shards[1:3], "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(tmp_path / name)
    with pytest.raises(CheckpointError) as raised:
        import_folder(folder)
    missing = (*shards[1:3], "tokenizer_config.json", "tokenizer.json")
    assert str(raised.value).endswith(f"not copied whole: there is no {', no '.join(missing)} in it")
    for name in missing:
        (tmp_path / name).rename(folder / name)
    (folder / shards[0]).write_bytes((folder / shards[0]).read_bytes()[:100])
    (folder / shards[2]).write_bytes(b"")
    with pytest.raises(CheckpointError, match="not readable as safetensors") as raised:
        import_folder(folder)
    assert [name for name in shards if name in str(raised.value)] == [shards[0], shards[2]]
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no model.safetensors in it"):
        import_folder(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "..", ""])
def test_an_index_names_no_file_elsewhere(tmp_path, name):
    siglip2_folder(tmp_path / "google", max_shard_size="10KB")
    index = tmp_path / "google" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"logit_bias": name}}))
    with pytest.raises(CheckpointError, match=f"names files outside its folder: {re.escape(name)}$"):
        import_folder(tmp_path / "google")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "clip"}, "a model type among siglip2, siglip, navit_siglip, found clip$"),
        ({"model_type": ["siglip2"]}, "expected a pair of towers"),
        ({"model_type": "siglip2_vision_model"}, "one tower alone; import the pair"),
        ({"model_type": "navit_siglip_text_model"}, "one tower alone; import the pair"),
        ([], "expected a JSON object"),
        ({"model_type": "siglip2", "vision_config": {"hidden_size": "wide"}}, "not a config"),
    ],
)
def test_other_folders_are_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        import_folder(tmp_path)


@pytest.mark.parametrize(
    ("kind", "tower", "setting", "message"),
    [
        (
            "siglip2",
            "vision_config",
            {"num_attention_heads": 0},
            "is 0, expected a whole number of at least 1$",
        ),
        (
            "siglip2",
            "text_config",
            {"num_attention_heads": 7},
            "is 7, expected a number that divides hidden_",
        ),
        ("siglip2", "text_config", {"num_hidden_layers": 0}, "is 0, expected a whole number of at least 1$"),
        ("siglip2", "vision_config", {"patch_size": [16, 16]}, r"is \[16, 16\], expected a whole number"),
        ("siglip2", "vision_config", {"num_patches": 24}, "is 24, expected the square of a number$"),
        ("siglip2", "text_config", {"attention_dropout": 0.1}, "is 0.1, expected 0$"),
        ("siglip", "vision_config", {"image_size": [224, 224]}, r"is \[224, 224\], expected a whole number"),
        ("siglip", "vision_config", {"image_size": 8}, "is 8, expected at least one patch of 16$"),
        ("siglip", "vision_config", {"num_hidden_layers": 0}, "is 0, expected a whole number of at least 1$"),
        (
            "navit_siglip",
            "vision_config",
            {"num_hidden_layers": 0},
            "is 0, expected a whole number of at least",
        ),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_named_by_their_keys(tmp_path, kind, tower, setting, message):
    configs = {"siglip2": Siglip2Config, "siglip": SiglipConfig}
    if kind in configs:
        tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
        settings = configs[kind](text_config=tokens).to_dict()
    else:
        settings = json.loads(own_config(ClipConfig(), False, {}).to_json_string(use_diff=False))
    settings[tower] |= setting
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (name,) = setting
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/config\.json: .*{tower}\.{name} {message}"):
        import_folder(tmp_path)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"image_mean": [0.48, 0.46, 0.41]},
            r"image_mean: expected \[0.5, 0.5, 0.5\], found \[0.48, 0.46, 0.41\]$",
        ),
        (
            {"image_mean": 0.5, "image_std": [0.5, 0.5, 1.0]},
            r"image_std: expected .*, found \[0.5, 0.5, 1.0\]$",
        ),
        ({"do_normalize": False}, "do_normalize: expected True, found False$"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor: expected 0.0039"),
    ],
    ids=str,
)
def test_pictures_that_are_normalised_otherwise_are_refused(tmp_path, file, said, message):
    siglip2_folder(tmp_path)
    (tmp_path / file).write_text(
        json.dumps({"image_processor": said} if file.startswith("processor") else said)
    )
    with pytest.raises(CheckpointError, match=f"{file}: pictures reach that model otherwise.* {message}"):
        import_folder(tmp_path)


@pytest.mark.parametrize("preprocess", [{"mean": [0.48, 0.46, 0.41], "std": [0.5] * 3}, {}])
def test_pictures_that_open_clip_normalises_otherwise_are_refused(tmp_path, preprocess):
    open_clip_folder(tmp_path)
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "preprocess_cfg": preprocess}))
    with pytest.raises(CheckpointError, match=r"mean: expected \[0.5, 0.5, 0.5\], found .0.48"):
        import_folder(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"expected a transformers folder .* found README.md"):
        import_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        import_folder(tmp_path / "gone")


def test_what_is_in_the_way_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for out, found in ((tmp_path, r"found thesis\.tex$"), (tmp_path / "thesis.tex" / "out", "is a file$")):
        with pytest.raises(CheckpointError, match=found):
            main([str(tmp_path / "gone"), str(out)])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    siglip2_folder(tmp_path / "google")
    (tmp_path / "google" / "tokenizer.json").unlink()
    (tmp_path / "google" / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        import_folder(tmp_path / "google")
