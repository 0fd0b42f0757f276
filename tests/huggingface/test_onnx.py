"""ONNX: onnxruntime gives our vectors from the graphs of both towers, on grids of every shape."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from navit_clip.huggingface.export import main as export
from navit_clip.tokenizer import train_tokenizer
from navit_clip.weights import save_model
from tests.data_builders import noise_picture
from tests.foreign_folders import CAPTIONS
from tests.huggingface.test_own_architecture import GRIDS, built, padded_images
from tests.packs import noise_images, pack


@pytest.mark.slow  # torch's exporter takes minutes on a busy machine
@pytest.mark.parametrize(
    ("position", "text"),
    [
        (("learned", "fractional", "sum"), {}),
        (("rope", "fractional_longer", "sum"), {"pooling": "map", "alignment": "left"}),
    ],
)
@torch.no_grad()
def test_graphs_give_our_vectors(tmp_path, position, text, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = built(position, **text)
    save_model(model, train_tokenizer(CAPTIONS, 600), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert export(["model", "out", "--format", "onnx", "--tokens-per-image", "50"]) == 0
    assert "equal token ids" in capsys.readouterr().out
    session = onnxruntime.InferenceSession("out/image.onnx")
    for grids in ([(1, 2)], GRIDS[1:], [(12, 12)], [(1, 12), (5, 3)]):
        images = pack(noise_images(grids, patch_size=4))
        inputs = {name: values.numpy() for name, values in padded_images(images).items()}
        vectors = torch.from_numpy(session.run(None, inputs)[0])
        torch.testing.assert_close(vectors, model.encode_images(images), atol=1e-5, rtol=0)
    Image.fromarray(noise_picture(40, 60)).save("photo.jpg")
    card = (tmp_path / "out" / "README.md").read_text()
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "(1, 16)\n(2, 16)\n"
