"""Evaluation tasks: a model and a list of tasks -> one result each, the same on every rank.

Runs by itself (`navit-clip eval`) and inside training on the live model, whose mode and whose random
state it leaves alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eval.datasets import open_captioned, open_classified
from eval.embed import EmbedConfig, EmbeddedImages, embed_captions, embed_images
from eval.names import read_names
from eval.prompts import PLAIN, class_embeddings, load_templates
from eval.retrieval import image_ranks, retrieval_chance, retrieval_metrics, text_ranks
from eval.zero_shot import classification_chance, classification_metrics, label_ranks, per_class_recall
from navit_clip.data.samples import check_caption_key
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.model.clip import NavitClip
from navit_clip.tokenizer import Tokenizer

NUM_EXAMPLES = 12
"""Captions of a retrieval result that are kept with what they retrieved, spread evenly over the data set."""

NUM_RETRIEVED = 5
"""Images kept for each of them."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One score sheet: a data set and what is asked of it."""

    dataset: str
    """Its name in results; also where it lies, unless dataset_root says otherwise."""
    task: Literal["zeroshot_classification", "zeroshot_retrieval"]
    """What is asked, as CLIP_benchmark calls it."""
    dataset_root: str = "{dataset}"
    """A CLIP_benchmark folder, shards, or a folder of class folders; {dataset} stands for the name without
    its wds/, {dataset_cleaned} for the same with - in place of /."""
    split: str = "test"
    """Subfolder of a CLIP_benchmark folder."""
    label_key: str = "cls"
    """Classification of shards: cls, or the json.KEY that holds the name of a sample's class."""
    caption_key: str = "txt"
    """Retrieval: txt, or the json.KEY that holds captions."""
    class_names: str = ""
    """Classification: a file of class names, one a line or JSON; empty takes the data set's own."""
    templates: list[str] = field(default_factory=list)
    """Classification: openai-80, openai-7, a file, or a template such as "a photo of a {}."; all that are
    listed count together. Empty takes the data set's own, or else the plain class name."""
    language: str = "en"
    """Of the prompts; only noted in the result."""

    def __post_init__(self):
        if not self.dataset:
            raise ConfigError("dataset: expected a name or a path, found nothing")
        check_caption_key(self.caption_key)
        kind, _, name = self.label_key.partition(".")
        if self.label_key != "cls" and (kind != "json" or not name):
            raise ConfigError(f"label_key: expected 'cls' or 'json.KEY', found {self.label_key!r}")

    @property
    def name(self) -> str:
        """The data set without CLIP_benchmark's wds/."""
        return self.dataset.removeprefix("wds/")

    @property
    def path(self) -> str:
        """Where the samples are."""
        cleaned = self.name.replace("/", "-")
        return self.dataset_root.replace("{dataset}", self.name).replace("{dataset_cleaned}", cleaned)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(EmbedConfig):
    """A suite of tasks, and what embedding for them may cost."""

    tasks: list[TaskConfig] = field(default_factory=list)
    """Run in this order."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The scores of one task."""

    config: TaskConfig
    metrics: dict[str, float]
    """Shares between 0 and 1, under CLIP_benchmark's names."""
    chance: dict[str, float]
    """What guessing at random scores, under the same names."""
    num_samples: int
    """Images that counted."""
    skipped: dict[str, int]
    """Samples that could not be used, by cause; a result with any is not of the whole data set."""
    tokens_per_image: int
    notes: list[str]
    """What a reader of the scores should know."""
    details: dict[str, Any]
    """Results per class with the templates used; or examples of what captions retrieved."""

    def as_json(self, model: str, pretrained: str) -> dict[str, Any]:
        """CLIP_benchmark's record of a result, and beside it our own."""
        return {
            "dataset": self.config.dataset,
            "model": model,
            "pretrained": pretrained,
            "task": self.config.task,
            "metrics": self.metrics,
            "language": self.config.language,
            "chance": self.chance,
            "num_samples": self.num_samples,
            "skipped": self.skipped,
            "tokens_per_image": self.tokens_per_image,
            "notes": self.notes,
            "protocol": asdict(self.config),
            **self.details,
        }


def evaluate(model: NavitClip, tokenizer: Tokenizer, config: EvalConfig, world: World) -> list[TaskResult]:
    """Runs every task; all ranks must call this together, and all get the results.

    Raises:
        ConfigError: class names or templates are missing or do not fit the data set.
        DataError: a data set is not there, is not what its task needs, or has no usable sample.
        CheckpointError: the model's embeddings are not finite.
    """
    run = {"zeroshot_classification": _classify, "zeroshot_retrieval": _retrieve}
    return [run[task.task](model, tokenizer, task, config, world) for task in config.tasks]


def _classify(
    model: NavitClip, tokenizer: Tokenizer, task: TaskConfig, config: EvalConfig, world: World
) -> TaskResult:
    class_names = read_names(Path(task.class_names), task.name, "class_names") if task.class_names else ()
    data = open_classified(task.path, task.split, task.label_key, class_names)
    templates = load_templates(task.templates, task.name) or data.templates or PLAIN
    names = data.class_names
    classes = class_embeddings(model, tokenizer, names, templates, world, config.token_budget)
    images = embed_images(model, data.samples, world, config)
    labels = torch.tensor([sample.label for sample in images.samples], device=world.device)
    ranks = label_ranks(images.vectors, classes, labels)
    recalls = per_class_recall(ranks, labels)
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    per_class = [
        {"class": name, "recall": recalls.get(label), "num_samples": counts[label]}
        for label, name in enumerate(names)
    ]
    return TaskResult(
        config=task,
        metrics=classification_metrics(ranks, labels, len(names)),
        chance=classification_chance(len(names)),
        num_samples=len(images.samples),
        skipped=dict(images.faults.counts),
        tokens_per_image=config.tokens_per_image,
        notes=_class_notes(names, counts) + _skip_notes(images),
        details={"templates": list(templates), "per_class": per_class},
    )


def _retrieve(
    model: NavitClip, tokenizer: Tokenizer, task: TaskConfig, config: EvalConfig, world: World
) -> TaskResult:
    images = embed_images(model, open_captioned(task.path, task.split, task.caption_key), world, config)
    captions = [caption for sample in images.samples for caption in sample.captions]
    owners = [number for number, sample in enumerate(images.samples) for _ in sample.captions]
    caption_image = torch.tensor(owners, device=world.device)
    vectors = embed_captions(model, tokenizer, captions, world, config.token_budget)
    ranks = image_ranks(images.vectors, vectors, caption_image)
    return TaskResult(
        config=task,
        metrics=retrieval_metrics(ranks, text_ranks(images.vectors, vectors, caption_image)),
        chance=retrieval_chance([len(sample.captions) for sample in images.samples]),
        num_samples=len(images.samples),
        skipped=dict(images.faults.counts),
        tokens_per_image=config.tokens_per_image,
        notes=_skip_notes(images),
        details={
            "num_captions": len(captions),
            "examples": _examples(images, captions, owners, vectors, ranks),
        },
    )


def _examples(
    images: EmbeddedImages, captions: Sequence[str], owners: Sequence[int], vectors: Tensor, ranks: Tensor
) -> list[dict[str, Any]]:
    """What a few captions, evenly spread and so not chosen by anybody, retrieve."""
    count = min(NUM_EXAMPLES, len(captions))
    examples = []
    for number in [place * len(captions) // count for place in range(count)]:
        scores = images.vectors @ vectors[number]
        best = scores.argsort(descending=True, stable=True)[:NUM_RETRIEVED].tolist()
        examples.append(
            {
                "caption": captions[number],
                "image": images.samples[owners[number]].key,
                "rank": int(ranks[number]),
                "retrieved": [images.samples[image].key for image in best],
            }
        )
    return examples


def _class_notes(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    notes = []
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        notes.append(f"class names that stand for more than one class: {', '.join(repeated)}")
    if empty := counts.count(0):
        notes.append(f"{empty} of {len(names)} classes have no image")
    largest = max(range(len(counts)), key=counts.__getitem__)
    notes.append(f"always answering {names[largest]!r} would score acc1 {counts[largest] / sum(counts):.1%}")
    return notes


def _skip_notes(images: EmbeddedImages) -> list[str]:
    return [f"incomplete: {images.faults.summary()}"] if images.faults.total else []
