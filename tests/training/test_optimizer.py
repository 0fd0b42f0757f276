"""Which parameters decay."""

from __future__ import annotations

import pytest

from navit_clip.model import ClipConfig, ImageTowerConfig, NavitClip, PositionConfig, TextTowerConfig
from training.optimizer import OptimizerConfig, make_optimizer, parameter_groups

SIZE = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16, "biases": True, "qk_norm": True}


@pytest.mark.parametrize("positions", ["learned", "fourier", "rope", "learned_2d", "grid"])
def test_matrices_decay_and_nothing_else_does(positions):
    image = ImageTowerConfig(**SIZE, position=PositionConfig(kind=positions))
    model = NavitClip(ClipConfig(image=image, text=TextTowerConfig(**SIZE, vocab_size=20)))
    decayed, kept = parameter_groups(model, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {
        "image.patch_embedding.weight",
        "image.pooling.query_key_value_weight",
        "image.pooling.output.weight",
        "image.pooling.mlp.expand.weight",
        "image.pooling.mlp.contract.weight",
        "text.token_embedding.weight",
        "text.head.weight",
        *(
            f"{tower}.transformer.blocks.0.{layer}.weight"
            for tower in ("image", "text")
            for layer in ("attention.query_key_value", "attention.output", "mlp.expand", "mlp.contract")
        ),
    }
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_the_optimizer_takes_the_config_s_settings():
    model = NavitClip(ClipConfig(image=ImageTowerConfig(**SIZE), text=TextTowerConfig(**SIZE, vocab_size=20)))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.5, beta2=0.9, epsilon=1e-6), model)
    assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["betas"] == (0.9, 0.9)
    assert optimizer.defaults["eps"] == 1e-6
