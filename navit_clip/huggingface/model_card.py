"""The README.md of an exported folder: what it is, how to use it, how it was verified."""

from __future__ import annotations

from pathlib import Path

from navit_clip.huggingface.siglip2 import TowerName
from navit_clip.huggingface.verification import Verification
from navit_clip.model import ClipConfig

TAGS = "tags:\n- navit-clip\n- siglip2\n"

TASKS = {"both": "zero-shot-image-classification", "image": "image-feature-extraction", "text": ""}

TITLES = {"both": "Image and text towers", "image": "Image tower", "text": "Text tower"}

USAGE = {
    "both": """\
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

model = AutoModel.from_pretrained("FOLDER").eval()
processor = AutoProcessor.from_pretrained("FOLDER")
image = Image.open("photo.jpg").convert("RGB")
inputs = processor(text=["a photo of a dog", "a photo of a cat"], images=image, return_tensors="pt")
outputs = model(**inputs)
print(outputs.image_embeds.shape, outputs.text_embeds.shape)  # unit vectors
print(outputs.logits_per_image.sigmoid())  # how probable each pair is

classify = pipeline("zero-shot-image-classification", model="FOLDER")
print(classify(image, candidate_labels=["dog", "cat"], hypothesis_template="a photo of a {}"))
""",
    "image": """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("FOLDER").eval()
processor = AutoImageProcessor.from_pretrained("FOLDER")
image = Image.open("photo.jpg").convert("RGB")
outputs = model(**processor(images=image, return_tensors="pt"))
print(outputs.pooler_output.shape)  # one vector an image; normalise it before comparing
print(outputs.last_hidden_state.shape)  # one vector a patch
""",
    "text": """\
from transformers import AutoTokenizer, Siglip2TextModel

model = Siglip2TextModel.from_pretrained("FOLDER").eval()
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
settings = {"padding": "max_length", "max_length": 64, "truncation": True}
inputs = tokenizer(["a photo of a dog", "a photo of a cat"], **settings, return_tensors="pt")
print(model(**inputs).pooler_output.shape)  # one vector a caption; normalise it before comparing
""",
}


def model_card(
    config: ClipConfig, tower: TowerName, name: str, tokens_per_image: int, verification: Verification
) -> str:
    """The card in Markdown, with the header that the Hugging Face hub reads.

    Args:
        config: of the model.
        tower: which part of it was exported.
        name: of the folder, as the snippet is to name it.
        tokens_per_image: the image processor's default.
        verification: what was compared, and how well it agreed.
    """
    task = f"pipeline_tag: {TASKS[tower]}\n" if TASKS[tower] else ""
    header = f"---\nlibrary_name: transformers\n{task}{TAGS}---\n"
    parts = [
        f"{header}\n# {name}\n\n{TITLES[tower]} of a NaViT-CLIP model (packed contrastive pretraining with a "
        "sigmoid loss), as a plain transformers Siglip2 model.",
        f"## Use\n\n```python\n{USAGE[tower].replace('FOLDER', name)}```",
        "## Architecture\n\n" + _architecture(config, tower),
        "## Input\n\n" + "\n".join(_input_notes(config, tower, tokens_per_image)),
        "## Verification\n\n" + _verified(tower, verification),
    ]
    return "\n\n".join(parts) + "\n"


def has_card(folder: Path) -> bool:
    """Whether a folder is an export of ours."""
    card = folder / "README.md"
    return card.exists() and TAGS in card.read_text(encoding="utf-8", errors="replace")


def _architecture(config: ClipConfig, tower: TowerName) -> str:
    image, text = config.image, config.text
    rows = ["| tower | width | depth | heads | MLP | input |", "|---|---|---|---|---|---|"]
    if tower != "text":
        side = image.position.table_side
        rows.append(
            f"| image | {image.width} | {image.depth} | {image.num_heads} | {image.mlp_dim} | patches of "
            f"{image.patch_size} x {image.patch_size}, positions {side} x {side} |"
        )
    if tower != "image":
        rows.append(
            f"| text | {text.width} | {text.depth} | {text.num_heads} | {text.mlp_dim} | at most "
            f"{text.context_length} of {text.vocab_size} tokens |"
        )
    return "\n".join(rows)


def _input_notes(config: ClipConfig, tower: TowerName, tokens_per_image: int) -> list[str]:
    images = [
        f"- Images keep their aspect ratio and become at most {tokens_per_image} patches of "
        f"{config.image.patch_size} pixels; pass `max_num_patches` for another number.",
        "- Put transparent images on white yourself: transformers drops transparency, training did not.",
        "- Images so tall that they are one patch wide get wrong position embeddings on a CPU, from torch's "
        "antialiased resize; none of them was used to verify.",
    ]
    captions = [
        f"- Captions are lower-cased, padded on the left to {config.text.context_length} tokens and masked; "
        "the tokenizer's and the processor's settings say so, and the zero-shot pipeline does so.",
    ]
    return [*(images if tower != "text" else []), *(captions if tower != "image" else [])]


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
        "After export the folder was opened with transformers and its unit vectors compared with the trained "
        f"model's, in float32 on a CPU: {' and '.join(compared)}."
    )
