"""The README.md of an exported folder: what it is, how to use it, how it was trained, judged and verified."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from navit_clip.huggingface.run_facts import RunFacts
from navit_clip.huggingface.siglip2 import TowerName
from navit_clip.huggingface.verification import Verification
from navit_clip.model import ClipConfig

MARK = "tags:\n- navit-clip\n"
"""By which an export of ours is known."""

TASKS = {"both": "zero-shot-image-classification", "image": "image-feature-extraction", "text": ""}

LIBRARIES = {"onnx": "onnx", "open_clip": "open_clip"}
"""As the hub names them; transformers where none is given."""

TITLES = {"both": "Image and text towers", "image": "Image tower", "text": "Text tower"}

KINDS = {
    "siglip2": "as a plain transformers Siglip2 model",
    "onnx": "as ONNX graphs, one for each tower, for onnxruntime and others",
    "open_clip": "in open_clip's format, its image tower a NaFlexVit of timm's",
    "own": "as a transformers model with its own modelling file, which `trust_remote_code=True` lets run",
}

USAGE = {
    "both": """\
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

model = AutoModel.from_pretrained("FOLDER"TRUST).eval()
processor = AutoProcessor.from_pretrained("FOLDER"TRUST)
image = Image.open("photo.jpg").convert("RGB")
inputs = processor(text=["a photo of a dog", "a photo of a cat"], images=image, return_tensors="pt")
outputs = model(**inputs)
print(outputs.image_embeds.shape, outputs.text_embeds.shape)  # unit vectors
print(outputs.logits_per_image.sigmoid())  # how probable each pair is

classify = pipeline("zero-shot-image-classification", model="FOLDER"TRUST)
print(classify(image, candidate_labels=["dog", "cat"], hypothesis_template="a photo of a {}"))
""",
    "image": """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("FOLDER"TRUST).eval()
processor = AutoImageProcessor.from_pretrained("FOLDER"TRUST)
image = Image.open("photo.jpg").convert("RGB")
outputs = model(**processor(images=image, return_tensors="pt"))
print(outputs.pooler_output.shape)  # one vector an image; normalise it before comparing
print(outputs.last_hidden_state.shape)  # one vector a patch
""",
    "text": """\
from transformers import TEXT_CLASS, AutoTokenizer

model = TEXT_CLASS.from_pretrained("FOLDER"TRUST).eval()
tokenizer = AutoTokenizer.from_pretrained("FOLDER"TRUST)
settings = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
inputs = tokenizer(["a photo of a dog", "a photo of a cat"], **settings, return_tensors="pt")
print(model(**inputs).pooler_output.shape)  # one vector a caption; normalise it before comparing
""",
}


ONNX_USAGE = {
    "image": """\
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained("FOLDER")
inputs = processor(images=Image.open("photo.jpg").convert("RGB"), return_tensors="np")
session = onnxruntime.InferenceSession("FOLDER/image.onnx")
kinds = {"pixel_values": "float32", "pixel_attention_mask": "int64", "spatial_shapes": "int64"}
feed = {name: inputs[name].astype(kind) for name, kind in kinds.items()}
print(session.run(None, feed)[0].shape)  # a unit vector an image
""",
    "text": """\
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
settings = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_attention_mask": True}
inputs = tokenizer(["a photo of a dog", "a photo of a cat"], **settings, return_tensors="np")
session = onnxruntime.InferenceSession("FOLDER/text.onnx")
feed = {name: inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
print(session.run(None, feed)[0].shape)  # a unit vector a caption
""",
}


OPEN_CLIP_USAGE = """\
import open_clip
import torch
from PIL import Image

model, _, transform = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
model.eval()
image = transform(Image.open("photo.jpg"))[None]
with torch.no_grad():
    images = model.encode_image(image, normalize=True)
    texts = model.encode_text(tokenizer(["a photo of a dog", "a photo of a cat"]), normalize=True)
    logits = model.logit_scale.exp() * images @ texts.T + model.logit_bias
print(images.shape, texts.shape)
print(logits.sigmoid())  # how probable each pair is
"""


class CardFacts(NamedTuple):
    """What a card says beside the model's own config."""

    form: str
    """The format: siglip2, own, onnx or open_clip."""
    tower: TowerName
    name: str
    """Of the folder, as the snippet is to name it."""
    address: str
    """Where it will be, as open_clip and timm say it: local-dir:PATH or hf-hub:OWNER/MODEL."""
    tokens_per_image: int
    """The image processor's default."""
    license: str | None
    """As the hub names licences."""
    run: RunFacts


def model_card(config: ClipConfig, facts: CardFacts, verification: Verification) -> str:
    """The card in Markdown, with the header that the Hugging Face hub reads."""
    tower = facts.tower
    task = f"pipeline_tag: {TASKS[tower]}\n" if TASKS[tower] else ""
    license_line = f"license: {facts.license}\n" if facts.license else ""
    library = LIBRARIES.get(facts.form, "transformers")
    header = f"---\nlibrary_name: {library}\n{license_line}{task}{MARK}- siglip\n---\n"
    parts = [
        f"{header}\n# {facts.name}\n\n{TITLES[tower]} of a NaViT-CLIP model (packed contrastive pretraining "
        f"with a sigmoid loss), {KINDS[facts.form]}.",
        f"## Use\n\n```python\n{_usage(config, facts)}```",
        "## Architecture\n\n" + _architecture(config, tower),
        "## Input\n\n" + "\n".join(_input_notes(config, facts)),
        "## Training\n\n" + _training(facts.run),
        "## Evaluation\n\n" + _evaluation(facts.run.results),
        "## Verification\n\n" + _verified(tower, verification),
        "## Licence\n\n"
        + (facts.license or "None was named when this model was exported; ask its makers.")
        + "\n\nThe data has licences of its own; this card does not know them.",
    ]
    return "\n\n".join(parts) + "\n"


def has_card(folder: Path) -> bool:
    """Whether a folder is an export of ours."""
    card = folder / "README.md"
    return card.exists() and MARK in card.read_text(encoding="utf-8", errors="replace")


def _usage(config: ClipConfig, facts: CardFacts) -> str:
    if facts.form == "open_clip":
        return OPEN_CLIP_USAGE.replace("FOLDER", facts.name)
    if facts.form == "onnx":
        towers = ("image", "text") if facts.tower == "both" else (facts.tower,)
        snippet = "\n".join(ONNX_USAGE[tower] for tower in towers)
        return snippet.replace("FOLDER", facts.name).replace("LENGTH", str(config.text.context_length))
    own = facts.form == "own"
    text_class = "AutoModel" if own else "Siglip2TextModel"
    snippet = USAGE[facts.tower]
    if facts.tower == "text":
        names = ", ".join(sorted([text_class, "AutoTokenizer"]))
        snippet = snippet.replace("TEXT_CLASS, AutoTokenizer", names).replace("TEXT_CLASS", text_class)
    snippet = snippet.replace("TRUST", ", trust_remote_code=True" if own else "")
    return snippet.replace("FOLDER", facts.name).replace("LENGTH", str(config.text.context_length))


def _architecture(config: ClipConfig, tower: TowerName) -> str:
    image, text = config.image, config.text
    rows = ["| tower | width | depth | heads | MLP | QK-norm | input |", "|---|---|---|---|---|---|---|"]
    if tower != "text":
        position = image.position
        measure = "" if position.kind in ("grid", "learned_2d") else f"{position.coordinates} "
        rows.append(
            f"| image | {image.width} | {image.depth} | {image.num_heads} | {image.mlp_dim} | "
            f"{_yes(image.qk_norm)} | patches of {image.patch_size} x {image.patch_size}, {measure}"
            f"{position.kind} positions, side {position.table_side} |"
        )
    if tower != "image":
        rows.append(
            f"| text | {text.width} | {text.depth} | {text.num_heads} | {text.mlp_dim} | "
            f"{_yes(text.qk_norm)} | at most {text.context_length} of {text.vocab_size} tokens"
            f"{', causal' if text.causal else ''} |"
        )
    return "\n".join(rows)


def _input_notes(config: ClipConfig, facts: CardFacts) -> list[str]:
    if facts.form == "open_clip":
        return _open_clip_notes(config, facts)
    images = [
        f"- Images keep their aspect ratio and become at most {facts.tokens_per_image} patches of "
        f"{config.image.patch_size} pixels; pass `max_num_patches` for another number.",
        "- Put transparent images on white yourself: transformers drops transparency, training did not.",
        "- The image processor, which runs on torchvision, gives what evaluation saw to the bit; the one on "
        'Pillow (`backend="pil"`) differs by a grey level here and there.',
    ]
    if facts.form == "siglip2":
        images.append(
            "- On CPUs, older versions of transformers give images so tall that they are one patch wide the "
            "wrong position embeddings; none of them was used to verify."
        )
    captions = [
        f"- Captions are padded to {config.text.context_length} tokens; the tokenizer's and the processor's "
        "settings say how, and the zero-shot pipeline does so."
    ]
    return [*(images if facts.tower != "text" else []), *(captions if facts.tower != "image" else [])]


def _open_clip_notes(config: ClipConfig, facts: CardFacts) -> list[str]:
    patch_size = config.image.patch_size
    side = math.isqrt(facts.tokens_per_image) * patch_size
    return [
        f"- The transform makes every image a square of {side} pixels. Training kept the images' own shapes, "
        f"and the tower takes batches of any one shape in whole patches of {patch_size} pixels.",
        "- The tokenizer cleans captions as its settings say: white space and broken Unicode at the least.",
    ]


def _training(run: RunFacts) -> str:
    if not run.recipe:
        return "Not known: the model was exported from a model folder, not from its run."
    data = "Data: " + (", ".join(f"`{Path(pattern).name}`" for pattern in run.shards) or "not named") + "."
    return "\n".join(
        [data, "", "| setting | value |", "|---|---|", *(f"| {a} | {b} |" for a, b in run.recipe)]
    )


def _evaluation(results: list[dict[str, Any]]) -> str:
    if not results:
        return "No evaluation is in the run's folder."
    rows = [
        f"| {Path(str(record['dataset'])).name} | {record['task']} | "
        + ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
        + f" | {record.get('num_samples', '')} | {record.get('tokens_per_image', '')} |"
        for record in results
    ]
    heading = ["| data set | task | metrics | images | tokens an image |", "|---|---|---|---|---|"]
    protocol = (
        "Zero-shot, by `navit-clip eval`: every image at its own aspect ratio, class names in the data set's "
        "prompts, cosine similarity of the unit vectors."
    )
    return "\n".join([*heading, *rows, "", protocol])


def _verified(tower: TowerName, verification: Verification) -> str:
    compared = []
    if tower != "text":
        compared.append(
            f"{verification.num_images} images (at most {verification.image_difference:.0e} apart)"
        )
    if tower != "image":
        compared.append(
            f"{verification.num_captions} captions (equal token ids, vectors at most "
            f"{verification.caption_difference:.0e} apart)"
        )
    return (
        "After export the folder was opened again and its unit vectors compared with the trained "
        f"model's, in float32 on a CPU: {' and '.join(compared)}."
    )


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
