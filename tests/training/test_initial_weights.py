"""Runs that start from trained towers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from navit_clip.distributed import World
from navit_clip.errors import CheckpointError
from navit_clip.model import ClipConfig, TwoTowers
from navit_clip.tokenizer import train_tokenizer
from navit_clip.weights import save_model
from tests.data_builders import small_tokenizer
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.config import RunConfig
from training.initial_weights import InitialWeightsConfig, load_initial_weights
from training.optimizer import OptimizerConfig, TowerOptimizerConfig
from training.train import run_training


def trained(folder: Path, config: ClipConfig) -> TwoTowers:
    """A model folder whose weights no other seed gives."""
    torch.manual_seed(99)
    model = TwoTowers(config)
    model.logit_scale.data.fill_(3.0)
    model.logit_bias.data.fill_(-4.0)
    save_model(model, small_tokenizer(), folder)
    return model


def copied(source: TwoTowers, target: TwoTowers) -> set[str]:
    """Which parts of a model are another's: a tower counts by its head, which is drawn at random."""
    marks = {
        "image": "image.pooling.probe",
        "text": "text.head.weight",
        "logit_scale": "logit_scale",
        "logit_bias": "logit_bias",
    }
    found, expected = target.state_dict(), source.state_dict()
    return {part for part, name in marks.items() if found[name].equal(expected[name])}


@pytest.mark.parametrize(
    ("towers", "expected"),
    [
        (["image"], {"image"}),
        (["text"], {"text"}),
        (["image", "text"], {"image", "text", "logit_scale", "logit_bias"}),
    ],
)
def test_towers_come_from_a_model_folder(tmp_path: Path, towers, expected):
    config = small_run(tmp_path).model
    source = trained(tmp_path / "model", config)
    model = TwoTowers(config)
    spellings = {"image": f"{tmp_path}/model", "text": f"{tmp_path}/./model/"}
    folders = InitialWeightsConfig(**{tower: spellings[tower] for tower in towers})
    load_initial_weights(folders, model, small_tokenizer())
    assert copied(source, model) == expected


def test_weights_from_elsewhere_decay_only_when_asked_to():
    assert InitialWeightsConfig(text="there").undecayed == ("text",)
    assert set(InitialWeightsConfig(image="here", text="there").undecayed) == {"image", "text"}
    assert InitialWeightsConfig(image="here", weight_decay=True).undecayed == ()
    assert InitialWeightsConfig().undecayed == ()


def test_what_does_not_fit_is_listed(tmp_path: Path):
    config = small_run(tmp_path).model
    trained(tmp_path / "model", config)
    folder = InitialWeightsConfig(image=str(tmp_path / "model"))
    other = replace(config, image=replace(config.image, depth=1, num_heads=4, checkpoint_blocks=True))
    with pytest.raises(
        CheckpointError, match=r"image\.depth is 2 there and 1 here; image\.num_heads is 2 there and 4 here$"
    ):
        load_initial_weights(folder, TwoTowers(other), small_tokenizer())
    wider = replace(config, image=replace(config.image, width=64))
    text = InitialWeightsConfig(text=str(tmp_path / "model"))
    with pytest.raises(
        CheckpointError, match=r"text\.head\.weight \(expected \[64, 32\], found \[32, 32\]\)"
    ):
        load_initial_weights(text, TwoTowers(wider), small_tokenizer())
    with pytest.raises(CheckpointError, match="another tokenizer than this run"):
        load_initial_weights(text, TwoTowers(config), train_tokenizer(["wholly other words"], 512))
    with pytest.raises(CheckpointError, match="no such folder"):
        load_initial_weights(InitialWeightsConfig(text="/nowhere"), TwoTowers(config), small_tokenizer())


def train_twice(world: World, config: RunConfig) -> None:
    """A run, which then goes on for as many pairs again, without what it started from."""
    run_training(config, world)
    if world.is_main:
        shutil.rmtree(config.init_from.image)
    run_training(replace(config, pairs=2 * config.pairs), world, "latest")


def test_a_frozen_trained_tower_stays_as_it_was_and_the_other_learns(tmp_path: Path):
    """And the run goes on where the folder that the tower came from is gone."""
    engine, checkpoint = {"precision": "fp32", "zero_stage": 3}, {"every": 4, "keep": 0}
    config = small_run(tmp_path, engine=engine, checkpoint=checkpoint)
    source = trained(tmp_path / "model", config.model).state_dict()
    locked = replace(
        config,
        init_from=InitialWeightsConfig(image=str(tmp_path / "model")),
        optimizer=OptimizerConfig(image=TowerOptimizerConfig(freeze=True)),
    )
    on_ranks(2, train_twice, locked)
    files = sorted(Path(config.folder).glob("checkpoints/step-*/model/model.safetensors"))
    early, late = load_file(files[0]), load_file(files[-1])
    for name, weight in source.items():
        if name.startswith("image."):
            assert early[name].equal(weight), name
            assert late[name].equal(weight), name
    assert not late["text.head.weight"].equal(early["text.head.weight"])
