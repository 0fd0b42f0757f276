"""Opens an exported folder the way any user of transformers would, and describes held-out stamps with it.

    python demo/reload.py runs/demo/export demo/stamps-test.tar

Imports transformers and nothing of this project. Prints, for a few stamps of the shard, the captions of the
whole shard that the model finds most fitting; a star marks the stamp's own.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

NUM_STAMPS = 8
NUM_CAPTIONS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Describes held-out stamps with an exported model.")
    parser.add_argument("folder", help="what `navit-clip export` wrote")
    parser.add_argument("shard", help="stamps with captions")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.shard)
    captions = sorted({caption for _, caption in pairs})

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(arguments.folder).eval()
    processor = AutoProcessor.from_pretrained(arguments.folder)
    assert "navit_clip" not in sys.modules
    print(f"{type(model).__name__} and {type(processor).__name__} from {arguments.folder}\n")

    shown = pairs[:: max(1, len(pairs) // NUM_STAMPS)][:NUM_STAMPS]
    images = [image for image, _ in shown]
    length = model.config.text_config.max_position_embeddings
    inputs = processor(
        text=captions,
        images=images,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        scores = model(**inputs).logits_per_image.sigmoid()
    for (_, own), row in zip(shown, scores, strict=True):
        print(own)
        for score, index in zip(*row.topk(NUM_CAPTIONS), strict=True):
            mark = "*" if captions[index] == own else " "
            print(f"  {mark} {score:6.1%}  {captions[index]}")


def read_pairs(shard: str) -> list[tuple[Image.Image, str]]:
    """Images, over white as the model was trained, and captions in the shard's order."""
    pictures, captions = {}, {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            if file and extension == "png":
                stamp = Image.open(io.BytesIO(file.read())).convert("RGBA")
                white = Image.new("RGBA", stamp.size, "white")
                pictures[key] = Image.alpha_composite(white, stamp).convert("RGB")
            elif file and extension == "txt":
                captions[key] = file.read().decode().splitlines()[0]
    return [(pictures[key], captions[key]) for key in captions]


if __name__ == "__main__":
    main()
