"""The README.md of an exported folder: what it is, how to use it, how it was trained, judged and verified."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any, NamedTuple

from navit_clip.config import flat_settings
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

WORDS = {
    "zeroshot_classification": "zero-shot classification",
    "zeroshot_retrieval": "zero-shot retrieval",
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean recall of the classes",
    "ece": "expected calibration error",
    "nll": "negative log-likelihood",
}
"""Names of tasks and metrics in words."""

NO_SHARES = ("nll",)
"""Metrics that are no shares of a whole."""

USAGE = {
    "both": """\
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

model = AutoModel.from_pretrained(folderTRUST).eval()
processor = AutoProcessor.from_pretrained(folderTRUST)
image = Image.open("photo.jpg").convert("RGB")
inputs = processor(text=["a photo of a dog", "a photo of a cat"], images=image, return_tensors="pt")
outputs = model(**inputs)
print(outputs.image_embeds.shape, outputs.text_embeds.shape)  # unit vectors
print(outputs.logits_per_image.sigmoid())  # how probable each pair is

classify = pipeline("zero-shot-image-classification", model=folderTRUST)
print(classify(image, candidate_labels=["dog", "cat"], hypothesis_template="a photo of a {}"))
""",
    "image": """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(folderTRUST).eval()
processor = AutoImageProcessor.from_pretrained(folderTRUST)
image = Image.open("photo.jpg").convert("RGB")
outputs = model(**processor(images=image, return_tensors="pt"))
print(outputs.pooler_output.shape)  # one vector an image; normalise it before comparing
print(outputs.last_hidden_state.shape)  # one vector a patch
""",
    "text": """\
from transformers import TEXT_CLASS, AutoTokenizer

model = TEXT_CLASS.from_pretrained(folderTRUST).eval()
tokenizer = AutoTokenizer.from_pretrained(folderTRUST)
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

processor = AutoImageProcessor.from_pretrained(folder)
inputs = processor(images=Image.open("photo.jpg").convert("RGB"), return_tensors="np")
session = onnxruntime.InferenceSession(f"{folder}/image.onnx")
kinds = {"pixel_values": "float32", "pixel_attention_mask": "int64", "spatial_shapes": "int64"}
feed = {name: inputs[name].astype(kind) for name, kind in kinds.items()}
print(session.run(None, feed)[0].shape)  # a unit vector an image
""",
    "text": """\
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
settings = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_attention_mask": True}
inputs = tokenizer(["a photo of a dog", "a photo of a cat"], **settings, return_tensors="np")
session = onnxruntime.InferenceSession(f"{folder}/text.onnx")
feed = {name: inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
print(session.run(None, feed)[0].shape)  # a unit vector a caption
""",
}


OPEN_CLIP_USAGE = """\
import open_clip
import torch
from PIL import Image

model, _, transform = open_clip.create_model_and_transforms(folder)
tokenizer = open_clip.get_tokenizer(folder)
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
    """Of the model, for the title."""
    folder: Path
    """Where it will be, as the user says it."""
    repository: str | None
    """Its name on the hub, where it is pushed."""
    tokens_per_image: int
    """The image processor's default."""
    license: str | None
    """As the hub names licences."""
    run: RunFacts

    @property
    def address(self) -> str:
        """Where it will be, as open_clip and timm say it: local-dir:PATH or hf-hub:OWNER/MODEL."""
        return f"hf-hub:{self.repository}" if self.repository else f"local-dir:{self.folder}"


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
    """The snippet: what it imports, where the model is, what to do with it."""
    tower = facts.tower
    if facts.form == "open_clip":
        snippet = OPEN_CLIP_USAGE
    elif facts.form == "onnx":
        snippet = "\n".join(ONNX_USAGE[name] for name in (("image", "text") if tower == "both" else (tower,)))
    else:
        own = facts.form == "own"
        text_class = "AutoModel" if own else "Siglip2TextModel"
        names = ", ".join(sorted([text_class, "AutoTokenizer"]))
        snippet = USAGE[tower].replace("TEXT_CLASS, AutoTokenizer", names).replace("TEXT_CLASS", text_class)
        snippet = snippet.replace("TRUST", ", trust_remote_code=True" if own else "")
    imports, _, rest = snippet.partition("\n\n")
    if facts.form == "onnx" and facts.repository:
        imports = f"import huggingface_hub\n{imports}"
    return f"{imports}\n\n{_place(facts)}\n{rest}".replace("LENGTH", str(config.text.context_length))


def _place(facts: CardFacts) -> str:
    """The line of the snippet that says where the model is."""
    here = "  # where this folder is"
    if facts.form == "open_clip":
        return f'folder = "{facts.address}"' + ("" if facts.repository else here)
    if facts.repository and facts.form == "onnx":
        return f'folder = huggingface_hub.snapshot_download("{facts.repository}")'
    return f'folder = "{facts.repository}"' if facts.repository else f'folder = "{facts.folder}"{here}'


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
    needs = ["- The modelling file needs transformers 5.6 or newer."] if facts.form == "own" else []
    captions = [
        f"- Captions are padded to {config.text.context_length} tokens; the tokenizer's and the processor's "
        "settings say how, and the zero-shot pipeline does so."
    ]
    return [*needs, *(images if facts.tower != "text" else []), *(captions if facts.tower != "image" else [])]


def _open_clip_notes(config: ClipConfig, facts: CardFacts) -> list[str]:
    patch_size = config.image.patch_size
    side = math.isqrt(facts.tokens_per_image) * patch_size
    return [
        f"- The transform makes every image a square of {side} pixels. Training kept the images' own shapes, "
        f"and the tower takes batches of any one shape in whole patches of {patch_size} pixels.",
        "- The tokenizer cleans captions as its settings say: white space and broken Unicode at the least.",
        "- The folder's `open_clip_config.json` says where it lies (`timm_model_name`, `hf_tokenizer_name`), "
        "since open_clip and timm look there: whoever moves it changes those.",
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
        return "No evaluation of these weights is in the run's folder."
    datasets = _dataset_names({str(record["dataset"]) for record in results})
    rules = list(dict.fromkeys(filter(None, map(_scoring, results))))
    rows = [
        f"| {datasets[str(record['dataset'])]} | {_words(record['task'])} | {_words(name)} | "
        f"{_figure(name, value)} | {_interval(name, record)} | {_chance(name, record)} | "
        f"{_number_judged(record)} | {record['tokens_per_image']} | {_departures(record, results)} | "
        f"{rules.index(_scoring(record)) + 1 if _scoring(record) else ''} |"
        for record in results
        for name, value in record["metrics"].items()
    ]
    heading = [
        "| data set | task | metric | score | 95 % interval | chance | images | patches an image | "
        "settings | rule |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    protocol = (
        "Zero-shot, by `navit-clip eval`: cosine similarity of the unit vectors; every image at its own "
        "aspect ratio and class names in the data set's prompts, but for what the settings say: those in "
        "which results of one task differ."
    )
    counts_as_right = ["", "What counts as right, by the number of the rule:", ""] if rules else []
    numbered = [f"{number}. {rule}" for number, rule in enumerate(rules, start=1)]
    return "\n".join([*heading, *rows, "", protocol, *counts_as_right, *numbered])


def _scoring(record: Mapping[str, Any]) -> str:
    return record.get("protocol", {}).get("scoring") or ""


def _dataset_names(datasets: Collection[str]) -> dict[str, str]:
    """Each data set -> the last parts of its path, as few as tell all apart; of shards their folder, too."""
    parts = {dataset: Path(dataset).parts or (dataset,) for dataset in datasets}
    names: dict[str, str] = {}
    for count in range(1, 1 + max(map(len, parts.values()))):
        names = {
            dataset: "/".join(own[-max(count, 1 + own[-1].endswith(".tar")) :])
            for dataset, own in parts.items()
        }
        if len(set(names.values())) == len(names):
            break
    return names


def _departures(record: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Settings by which a result differs from others of its data set and task."""
    what = ("dataset", "task")
    alike = [other for other in results if all(other[name] == record[name] for name in what)]
    settings = [
        flat_settings({"language": other.get("language"), **other.get("protocol", {})}) for other in alike
    ]
    own = settings[alike.index(record)]
    differing = [key for key in own if len({str(other.get(key)) for other in settings}) > 1]
    columns = ("scoring", "images.tokens_per_image")  # which the table has beside these
    shown = (key for key in differing if key not in columns)
    return ", ".join(f"{key.rpartition('.')[2]} {own[key]}" for key in shown)


def _words(name: str) -> str:
    """The name of a task or metric for people."""
    kind, _, k = name.partition("@")
    if k:
        return f"{kind.removesuffix('_recall').replace('_', ' ')}, recall@{k}"
    return WORDS.get(name, name.replace("_", " "))


def _figure(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric in NO_SHARES else f"{value:.1%}"


def _interval(metric: str, record: Mapping[str, Any]) -> str:
    interval = record.get("intervals", {}).get(metric)
    return " to ".join(_figure(metric, end) for end in interval) if interval else ""


def _chance(metric: str, record: Mapping[str, Any]) -> str:
    chance = record.get("chance", {}).get(metric)
    return "" if chance is None else _figure(metric, chance)


def _number_judged(record: Mapping[str, Any]) -> str:
    return f"{record['num_samples']:,}" + ("" if record.get("complete", True) else " (not all)")


def _verified(tower: TowerName, verification: Verification) -> str:
    compared = []
    if tower != "text":
        compared.append(
            f"{verification.num_images} images (at most {_at_most(verification.image_difference)} apart)"
        )
    if tower != "image":
        compared.append(
            f"{verification.num_captions} captions (equal token ids, vectors at most "
            f"{_at_most(verification.caption_difference)} apart)"
        )
    return (
        "After export the folder was opened again and its unit vectors compared with the trained "
        f"model's, in float32 on a CPU: {' and '.join(compared)}."
    )


def _at_most(difference: float) -> str:
    """Two digits, rounded up."""
    return f"{Context(prec=2, rounding=ROUND_CEILING).create_decimal(difference):.1e}"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
