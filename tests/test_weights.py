"""A model folder: what was saved is what is loaded, replaced whole, and every way it can be wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from navit_clip.errors import CheckpointError
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from navit_clip.run_settings import run_folder
from navit_clip.tokenizer import train_tokenizer
from navit_clip.weights import (
    load_model,
    resolve_model_folder,
    save_model,
    usual_tokens,
    whole_folder,
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a small dog", "a large dog"], vocab_size=512)


def small_model(**image) -> TwoTowers:
    size = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    config = ClipConfig(
        image=ImageTowerConfig(**size, patch_size=4, position=PositionConfig(table_side=3), **image),
        text=TextTowerConfig(**size, vocab_size=512),
    )
    return TwoTowers(config)


@pytest.fixture
def folder(tmp_path, tokenizer):
    save_model(small_model(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def test_what_was_saved_is_loaded(tmp_path, tokenizer):
    model = small_model(biases=True, qk_norm=True)
    save_model(model, tokenizer, tmp_path / "deep" / "model")
    loaded = load_model(tmp_path / "deep" / "model")
    assert loaded.model.config == model.config
    assert not loaded.model.training
    assert loaded.tokenizer.encode(["a dog"], 64) == tokenizer.encode(["a dog"], 64)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.model.parameters())


def test_half_precision_weights_are_loaded_in_full(tmp_path, tokenizer):
    save_model(small_model().bfloat16(), tokenizer, tmp_path / "model")
    loaded = load_model(tmp_path / "model").model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_loading_draws_no_random_numbers(folder):
    torch.manual_seed(5)
    load_model(folder)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


def test_nothing_is_pickled_and_nothing_is_left_beside(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".safetensors", ".yaml", ".json"}


def test_a_model_folder_is_replaced_whole(folder, tokenizer):
    (folder / "stale").touch()
    model = small_model()
    save_model(model, tokenizer, folder)
    assert torch.equal(load_model(folder).model.text.head.weight, model.text.head.weight)
    assert not (folder / "stale").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_other_folders_are_not_overwritten(tmp_path, tokenizer):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"found thesis\.tex$"):
        save_model(small_model(), tokenizer, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "navit_clip.yaml", "tokenizer"])
def test_a_half_copied_folder_says_what_is_missing(folder, name):
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match=f"there is no {name}"):
        load_model(folder)


def test_missing_and_extra_weights_are_listed(folder):
    edit_weights(folder, lambda weights: weights.update(bogus=weights.pop("logit_bias")))
    with pytest.raises(CheckpointError, match=r"missing: logit_bias\n  not of this model: bogus$"):
        load_model(folder)


def test_long_lists_are_counted(folder):
    edit_weights(folder, lambda weights: weights.update({f"bogus{i:02}": torch.zeros(1) for i in range(20)}))
    with pytest.raises(CheckpointError, match="bogus07 and 12 more"):
        load_model(folder)


def test_wrong_shapes_are_listed(folder):
    edit_weights(folder, lambda weights: weights.update({"logit_bias": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"logit_bias \(expected \[1\], found \[2\]\)"):
        load_model(folder)


def test_unreadable_files_are_named(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not readable"):
        load_model(folder)
    (folder / "navit_clip.yaml").write_text("image: {breadth: 3}")
    with pytest.raises(CheckpointError, match=r"image\.breadth"):
        load_model(folder)


def test_a_path_may_be_a_run_a_checkpoint_or_a_model(tmp_path, tokenizer):
    model = tmp_path / "run" / "checkpoints" / "step-00000010" / "model"
    save_model(small_model(), tokenizer, model)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-00000010\n")
    for path in (model, model.parent, tmp_path / "run"):
        assert resolve_model_folder(path) == model
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-00000020")
    with pytest.raises(CheckpointError, match="step-00000020"):
        resolve_model_folder(tmp_path / "run")


def test_a_path_that_is_none_of_them_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model_folder(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"checkpoints/latest\), found an empty folder$"):
        resolve_model_folder(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found photo\.jpg$"):
        resolve_model_folder(tmp_path)
    with pytest.raises(CheckpointError, match="found a file"):
        resolve_model_folder(tmp_path / "photo.jpg")


def test_a_run_that_has_no_checkpoint_yet_is_told_from_other_folders(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="a run that has no checkpoint yet"):
        resolve_model_folder(tmp_path)


def test_whoever_may_read_the_config_may_read_the_weights(folder):
    assert {file.stat().st_mode for file in folder.rglob("*") if file.is_file()} == {
        (folder / "navit_clip.yaml").stat().st_mode
    }
    assert (folder / "model.safetensors").stat().st_mode & 0o666 == folder.stat().st_mode & 0o666


def test_a_run_and_its_checkpoints_are_judged_at_one_number_of_tokens(tmp_path):
    model = tmp_path / "run" / "checkpoints" / "step-00000004" / "model"
    model.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("evaluation: {tokens_per_image: 64}\n")
    (tmp_path / "link").symlink_to(model)
    for place in (tmp_path / "run", model.parent, model, tmp_path / "link", model / ".."):
        assert run_folder(place) == tmp_path / "run"
        assert usual_tokens(place) == 64
    for place in (tmp_path, tmp_path / "run" / "imported", "open_clip:ViT-B-32"):
        assert run_folder(place) is None
        assert usual_tokens(place) is None


@pytest.mark.parametrize(
    ("file", "settings", "tokens"),
    [
        ("processor_config.json", {"image_processor": {"max_num_patches": 64}}, 64),
        ("preprocessor_config.json", {"max_num_patches": 1024}, 1024),
        ("preprocessor_config.json", {"size": {"height": 384, "width": 384}}, None),
    ],
)
def test_a_folder_for_transformers_says_how_many_tokens(tmp_path, file, settings, tokens):
    (tmp_path / file).write_text(json.dumps(settings))
    assert usual_tokens(tmp_path) == tokens


def test_a_processor_without_images_leaves_them_to_the_other_file(tmp_path):
    (tmp_path / "processor_config.json").write_text('{"processor_class": "SiglipProcessor"}')
    assert usual_tokens(tmp_path) is None
    (tmp_path / "preprocessor_config.json").write_text('{"max_num_patches": 64}')
    assert usual_tokens(tmp_path) == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"max_num_patches": -3}', "max_num_patches: expected a whole number of at least 1, found -3$"),
        ('{"max_num_patches": "64"}', "max_num_patches: expected a whole number of at least 1, found '64'$"),
        ('["max_num_patches"]', "expected a JSON object, found list$"),
        ("{", "not readable as JSON"),
    ],
)
def test_settings_of_images_that_cannot_be_are_named(tmp_path, settings, message):
    (tmp_path / "preprocessor_config.json").write_text(settings)
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: {message}"):
        usual_tokens(tmp_path)


def test_a_model_that_was_being_replaced_when_killed_is_not_lost(tmp_path, folder):
    """Between the two renames: the old one has gone aside, the new one is not yet in its place."""
    weights = (folder / "model.safetensors").read_bytes()
    folder.rename(tmp_path / ".model.replaced")
    (tmp_path / ".model.partial").mkdir()
    with (
        pytest.raises(ZeroDivisionError),
        whole_folder(folder, replaces=lambda path: (path / "model.safetensors").exists()),
    ):
        _ = 1 / 0
    assert (folder / "model.safetensors").read_bytes() == weights
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("killed", [False, True])
def test_results_beside_a_model_outlive_its_replacement(tmp_path, folder, killed):
    (folder / "eval").mkdir()
    (folder / "eval" / "results.jsonl").write_text("{}\n")
    if killed:  # once the new one was in its place
        folder.rename(tmp_path / ".model.replaced")
        folder.mkdir()
        (folder / "model.safetensors").touch()
    for _ in range(2):
        with whole_folder(folder, replaces=lambda path: (path / "model.safetensors").exists()) as new:
            (new / "model.safetensors").touch()
    assert sorted(path.name for path in folder.iterdir()) == ["eval", "model.safetensors"]
    assert (folder / "eval" / "results.jsonl").read_text() == "{}\n"


def test_a_model_without_a_run_says_its_number_itself(tmp_path, tokenizer):
    save_model(small_model(), tokenizer, tmp_path / "imported" / "model", tokens_per_image=729)
    for place in (tmp_path / "imported", tmp_path / "imported" / "model"):
        assert usual_tokens(place) == 729
    save_model(small_model(), tokenizer, tmp_path / "imported" / "model")
    assert usual_tokens(tmp_path / "imported" / "model") is None


@pytest.mark.parametrize("config", ["[1, 2]", "a: [", "model: resnet", "evaluation: 7"])
def test_another_s_config_does_not_hide_the_processor(tmp_path, config):
    """A run has checkpoints beside its config."""
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "preprocessor_config.json").write_text('{"max_num_patches": 81}')
    assert run_folder(tmp_path) is None
    assert usual_tokens(tmp_path) == 81
