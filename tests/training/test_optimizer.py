"""Which parameters decay, and how fast each learns."""

from __future__ import annotations

from typing import Any

import pytest

from navit_clip.errors import ConfigError
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from training.optimizer import (
    OptimizerConfig,
    TowerOptimizerConfig,
    freeze_towers,
    make_optimizer,
    parameter_groups,
)

SIZE = {"width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16, "biases": True, "qk_norm": True}


def make_model(positions: Any = "learned") -> TwoTowers:
    image = ImageTowerConfig(**SIZE, position=PositionConfig(kind=positions))
    return TwoTowers(ClipConfig(image=image, text=TextTowerConfig(**SIZE, vocab_size=20)))


def settings(model: TwoTowers, name: str, **arguments) -> dict[str, float]:
    """One setting of every parameter that is trained, by the parameter's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model=model, **arguments)
    return {names[id(parameter)]: group[name] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("positions", ["learned", "fourier", "rope", "learned_2d", "grid"])
def test_matrices_decay_and_nothing_else_does(positions):
    model = make_model(positions)
    decay = settings(model, "weight_decay", config=OptimizerConfig(weight_decay=0.1))
    assert set(decay.values()) == {0.1, 0.0}
    assert {name for name, value in decay.items() if value} == {
        "image.patch_embedding.weight",
        "image.pooling.query_key_value_weight",
        "image.pooling.output.weight",
        "image.pooling.mlp.expand.weight",
        "image.pooling.mlp.contract.weight",
        "text.token_embedding.weight",
        "text.head.weight",
        *(
            f"{tower}.transformer.blocks.{block}.{layer}.weight"
            for tower in ("image", "text")
            for block in range(2)
            for layer in ("attention.query_key_value", "attention.output", "mlp.expand", "mlp.contract")
        ),
    }
    assert len(decay) == len(list(model.parameters()))


def test_a_tower_has_its_own_decay_and_one_with_trained_weights_none():
    config = OptimizerConfig(weight_decay=0.1, text=TowerOptimizerConfig(weight_decay_share=0.5))
    decay = settings(make_model(), "weight_decay", config=config, undecayed=["image"])
    towers = {
        tower: {value for name, value in decay.items() if name.startswith(tower)}
        for tower in ("image", "text")
    }
    assert towers == {"image": {0.0}, "text": {0.05, 0.0}}


def test_layers_learn_slower_the_lower_they_are():
    config = OptimizerConfig(image=TowerOptimizerConfig(learning_rate_share=0.8, layer_decay=0.5))
    share = settings(make_model(), "learning_rate_share", config=config)
    expected = {
        "image.pooling.probe": 0.8,
        "image.transformer.norm.weight": 0.8,
        "image.transformer.blocks.1.mlp.expand.weight": 0.4,
        "image.transformer.blocks.0.attention_norm.bias": 0.2,
        "image.patch_embedding.weight": 0.1,
        "image.patch_embedding.bias": 0.1,
        "image.position.row": 0.1,
        "text.token_embedding.weight": 1.0,
        "logit_bias": 1.0,
    }
    assert {name: share[name] for name in expected} == pytest.approx(expected)


def test_a_frozen_tower_is_in_no_group():
    config = OptimizerConfig(image=TowerOptimizerConfig(freeze=True))
    model = make_model()
    freeze_towers(config, model)
    trained = settings(model, "weight_decay", config=config)
    assert set(trained) == {name for name, _ in model.named_parameters() if not name.startswith("image.")}


def test_the_optimizer_takes_the_config_s_settings():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.5, beta2=0.9, epsilon=1e-6), make_model())
    assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["betas"] == (0.9, 0.9)
    assert optimizer.defaults["eps"] == 1e-6


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate_share": -1.0}, r"learning_rate_share: expected at least 0, found -1\.0"),
        ({"layer_decay": 0.0}, r"layer_decay: expected in \(0, 1\], found 0\.0"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        TowerOptimizerConfig(**setting)
