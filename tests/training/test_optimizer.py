"""Which parameters decay, and how fast each learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from navit_clip.errors import ConfigError
from navit_clip.model import ClipConfig, ImageTowerConfig, PositionConfig, TextTowerConfig, TwoTowers
from training.optimizer import (
    MuonConfig,
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


def test_muon_trains_the_matrices_of_blocks_and_nothing_else():
    model = make_model()
    config = OptimizerConfig(
        kind="muon", muon=MuonConfig(learning_rate_share=3.0), image=TowerOptimizerConfig(layer_decay=0.5)
    )
    share = settings(model, "learning_rate_share", config=config)
    use_muon = settings(model, "use_muon", config=config)
    assert {name for name, used in use_muon.items() if used} == {
        f"{tower}.transformer.blocks.{block}.{layer}.weight"
        for tower in ("image", "text")
        for block in range(2)
        for layer in ("attention.query_key_value", "attention.output", "mlp.expand", "mlp.contract")
    }
    assert share["image.transformer.blocks.0.mlp.expand.weight"] == 3 * 0.25
    assert share["text.transformer.blocks.0.mlp.expand.weight"] == 3
    assert share["text.token_embedding.weight"] == 1


def orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """Muon's step for a first gradient: five iterations of Newton and Schulz, in float64."""
    step = gradient.double() / gradient.double().norm()
    for _ in range(5):
        square = step @ step.T
        step = 3.4445 * step + (-4.7750 * square + 2.0315 * square @ square) @ step
    return step * max(1, gradient.shape[0] / gradient.shape[1]) ** 0.5


def test_a_step_of_muon_is_orthogonal_and_the_others_are_adamw_s():
    torch.manual_seed(0)
    model = make_model()
    optimizer = make_optimizer(OptimizerConfig(kind="muon", weight_decay=0.0), model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    gradients = {name: torch.randn_like(weight) for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        weight.grad = gradients[name].clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    with torch.compiler.set_stance("force_eager"):  # DeepSpeed has Muon compiled, which takes a minute
        optimizer.step()
    for name, weight in model.named_parameters():
        moved = (before[name] - weight.detach()) / 0.1
        if ".blocks." in name and weight.ndim == 2:
            expected = orthogonal(gradients[name])
            assert (moved - expected).norm() < 2e-2 * expected.norm(), name
        else:
            torch.testing.assert_close(moved, gradients[name].sign(), rtol=0, atol=1e-3)


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
