"""A block written for the compiler is the block that runs kernel by kernel."""

from __future__ import annotations

import pytest
import torch

from navit_clip.batch import offsets_of
from navit_clip.model.blocks import Transformer, TransformerConfig


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # as torch.compile looks at the type checks
def test_compiled_blocks_give_the_eager_vectors_and_gradients(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    config = TransformerConfig(width=32, depth=1, num_heads=2, mlp_dim=64, biases=True)
    plain, compiled = Transformer(config).double(), Transformer(config).double()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter)
    compiled.load_state_dict(plain.state_dict())
    compile_ = torch.compile  # all that inductor is given, without its minute
    monkeypatch.setattr(
        torch, "compile", lambda function, **how: compile_(function, backend="aot_eager", **how)
    )
    compiled.compile_blocks()

    lengths = [7, 3]
    tokens = torch.randn(sum(lengths), config.width, dtype=torch.float64)
    outputs = [tower(tokens, offsets_of(lengths), max(lengths)) for tower in (plain, compiled)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-10, msg=name)
