"""Evaluation tasks: a model and a list of tasks -> one result each, the same on every rank.

Runs by itself (`navit-clip eval`) and inside training on the live model, whose mode and whose random
state it leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval import official_captioned, official_classified
from eval.calibration import reliability
from eval.cost import Judged, measure_cost
from eval.datasets import CaptionedSamples, ClassifiedSamples, open_captioned, open_classified
from eval.embed import EmbeddedImages, embed_captions, embed_images
from eval.image_config import ImageConfig
from eval.latency import seconds_per_image
from eval.model import JudgedModel
from eval.names import read_names
from eval.prompts import PLAIN, canonical, class_embeddings, load_templates
from eval.result import TaskResult
from eval.retrieval import image_ranks, retrieval_chance, retrieval_metrics, text_ranks
from eval.store import Store
from eval.task_config import EvalConfig, TaskConfig
from eval.views import View
from eval.zero_shot import Outcomes, classification_chance, classification_metrics, classify, per_class_recall
from navit_clip.config import nearest
from navit_clip.data.remote import RemoteConfig, is_remote
from navit_clip.data.shards import find_shards
from navit_clip.distributed import World
from navit_clip.errors import DataError

NUM_EXAMPLES = 12
"""Captions of a retrieval result that are kept with what they retrieved, spread evenly over the data set;
and the most confident mistakes of a classification."""

NUM_RETRIEVED = 5
"""Images kept for each caption."""


def evaluate(
    model: JudgedModel,
    config: EvalConfig,
    world: World,
    store: Store | None = None,
    remote: RemoteConfig | None = None,
) -> Iterator[TaskResult]:
    """Runs the tasks one by one; all ranks must go through them together, and all get the results.

    Args:
        model: which.
        config: the tasks and how images are shown.
        world: the ranks.
        store: where vectors are kept and looked for; without one, nowhere.
        remote: how to fetch shards from elsewhere.

    Raises:
        ConfigError: class names or templates are missing or do not fit the data set, or a setting does not
            fit the model.
        DataError: a data set is not there or not whole, is not what its task needs, or has no usable sample.
        CheckpointError: the model's embeddings are not finite.
    """
    run = {"zeroshot_classification": _classify, "zeroshot_retrieval": _retrieve}
    return (run[task.task](model, task, config, world, store, remote) for task in config.tasks)


def open_classified_task(task: TaskConfig, remote: RemoteConfig | None = None) -> ClassifiedSamples:
    """The data set of a classification task."""
    if task.is_official and task.name in official_classified.OFFICIAL:
        data = official_classified.open_official(task.name, Path(task.path), task.incomplete)
        if task.class_names:
            names = read_names(Path(task.class_names), task.name, "class_names")
            return replace(data, space=data.space.renamed(names))
        return data
    if task.is_official or (_lacks_folder(task) and not task.dataset.startswith("wds/")):
        official_classified.check_variant(task.name)
    _check_is_there(task, official_classified.OFFICIAL, official_classified.expected_layout)
    class_names = read_names(Path(task.class_names), task.name, "class_names") if task.class_names else ()
    return open_classified(task.path, task.split, task.label_key, class_names, remote)


def open_captioned_task(task: TaskConfig, remote: RemoteConfig | None = None) -> CaptionedSamples:
    """The data set of a retrieval task."""
    if task.is_official and task.name in official_captioned.OFFICIAL:
        return official_captioned.open_official(task.name, Path(task.path), task.incomplete)
    _check_is_there(task, official_captioned.OFFICIAL, official_captioned.expected_layout)
    return open_captioned(task.path, task.split, task.caption_key, remote)


def check_tasks(tasks: Sequence[TaskConfig], remote: RemoteConfig | None = None) -> None:
    """Opens every data set and reads every template once: what is missing is known before a model is loaded.

    Of data sets elsewhere only the names are looked up.

    Raises:
        ConfigError: as `evaluate` does.
        DataError: likewise, but for what reading the samples shows.
    """
    for task in tasks:
        if task.task == "zeroshot_classification":
            load_templates(task.templates, task.name)
        if is_remote(task.path):
            find_shards([task.path], remote)
        elif task.task == "zeroshot_classification":
            open_classified_task(task, remote)
        else:
            open_captioned_task(task, remote)


def _lacks_folder(task: TaskConfig) -> bool:
    """Whether a task needs a folder, since it does not name shards, and none is there."""
    path = Path(task.path)
    names_shards = is_remote(task.path) or path.suffix == ".tar" or set(task.path) & set("*?[{")
    return not (path.exists() or names_shards)


def _check_is_there(task: TaskConfig, known: Collection[str], expected_layout: Callable[[str], str]) -> None:
    """Raises DataError where a folder is named, or only a name is given, and nothing is there.

    Args:
        task: which.
        known: names of data sets that its kind of task has.
        expected_layout: what the folder of one of these should hold.
    """
    if not _lacks_folder(task):
        return
    no_folder = f"no such folder: {Path(task.path).absolute()}"
    if task.dataset.startswith("wds/"):
        raise DataError(
            f"{task.name}: {no_folder}; expected CLIP_benchmark's folder, with {task.split}/nshards.txt in it"
        )
    is_by_name = task.path == task.name
    hint = "; --dataset_root says where a data set lies" if is_by_name else ""
    if task.name in known:
        raise DataError(f"{task.name}: {no_folder}; {expected_layout(task.name)}{hint}")
    if is_by_name and "/" not in task.name:
        close = nearest(task.name, list(known))
        raise DataError(f"{task.name}: {no_folder}, and no data set is known by this name; {close}{hint}")
    raise DataError(f"{task.name}: {no_folder}")


def _classify(
    model: JudgedModel,
    task: TaskConfig,
    config: EvalConfig,
    world: World,
    store: Store | None,
    remote: RemoteConfig | None,
) -> TaskResult:
    data = open_classified_task(task, remote)
    templates = load_templates(task.templates, task.name) or data.templates or PLAIN
    columns = class_embeddings(
        model, data.space.prompts, templates, world, config.token_budget, task.canonicalize, store
    )
    view = View(border=max(task.border, data.border), center=task.center)

    def judge(images: ImageConfig) -> tuple[EmbeddedImages, Outcomes]:
        embedded = embed_images(model, data.samples, world, images, view, store)
        return embedded, classify(
            embedded.vectors, columns, data.space, _accepted(data, embedded), model.logit_scale
        )

    def judge_with_cost(images: ImageConfig) -> Judged:
        embedded, outcomes = judge(images)
        seconds = seconds_per_image(model, data.samples, world, images, view)
        return Judged(outcomes, embedded.mean_tokens, seconds)

    embedded, outcomes = judge(config)
    accepted = _accepted(data, embedded)
    labels = None if data.accepted else torch.tensor([sample.label for sample in embedded.samples])
    metrics, intervals = classification_metrics(
        outcomes, data.space, None if labels is None else labels.numpy()
    )
    details: dict[str, Any] = {
        "templates": list(templates),
        "reliability": reliability(outcomes.confidence.numpy(), outcomes.right).as_json(),
        "mistakes": _mistakes(data, embedded, outcomes, accepted),
    }
    counts = [0] * len(data.space.classes)
    if labels is not None:
        counts = torch.bincount(labels, minlength=len(counts)).tolist()
        recalls = per_class_recall(outcomes.ranks, labels)
        details["per_class"] = [
            {"class": name, "recall": recalls.get(label), "num_samples": counts[label]}
            for label, name in enumerate(data.space.classes)
        ]
    if task.cost_tokens:
        details["cost"] = measure_cost(judge_with_cost, task.cost_tokens, config)
    return TaskResult(
        config=task,
        images=config,
        metrics=metrics,
        intervals=intervals,
        chance=classification_chance(data.space, accepted, by_class=labels is not None),
        scoring=data.scoring,
        num_samples=len(embedded.samples),
        skipped=dict(embedded.faults.counts),
        complete=not data.missing and not embedded.faults.total,
        mean_tokens=embedded.mean_tokens,
        notes=[
            *_incomplete_notes(data.missing, embedded),
            *_class_notes(data.space.prompts, data.space.classes, counts),
        ],
        details=details,
    )


def _retrieve(
    model: JudgedModel,
    task: TaskConfig,
    config: EvalConfig,
    world: World,
    store: Store | None,
    remote: RemoteConfig | None,
) -> TaskResult:
    data = open_captioned_task(task, remote)
    view = View(border=task.border, center=task.center)
    images = embed_images(model, data.samples, world, config, view, store)
    captions = [caption for sample in images.samples for caption in sample.captions]
    owners = [number for number, sample in enumerate(images.samples) for _ in sample.captions]
    caption_image = torch.tensor(owners, device=world.device)
    asked = [canonical(caption) for caption in captions] if task.canonicalize else captions
    vectors = embed_captions(model, asked, world, config.token_budget)
    ranks = image_ranks(images.vectors, vectors, caption_image)
    metrics, intervals = retrieval_metrics(
        ranks, text_ranks(images.vectors, vectors, caption_image), caption_image
    )
    return TaskResult(
        config=task,
        images=config,
        metrics=metrics,
        intervals=intervals,
        chance=retrieval_chance([len(sample.captions) for sample in images.samples]),
        scoring="every caption for its image; an image for at least one of its captions",
        num_samples=len(images.samples),
        skipped=dict(images.faults.counts),
        complete=not data.missing and not images.faults.total,
        mean_tokens=images.mean_tokens,
        notes=_incomplete_notes(data.missing, images),
        details={
            "num_captions": len(captions),
            "examples": _examples(images, captions, owners, vectors, ranks),
        },
    )


def _accepted(data: ClassifiedSamples, images: EmbeddedImages) -> list[tuple[int, ...]]:
    """The labels that count as right for each image."""
    if data.accepted:
        return [data.accepted[sample.key] for sample in images.samples]
    return [(sample.label,) for sample in images.samples if sample.label is not None]


def _mistakes(
    data: ClassifiedSamples, images: EmbeddedImages, outcomes: Outcomes, accepted: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """The wrong answers that the model was surest of."""
    wrong = (outcomes.ranks > 0).nonzero()[:, 0]
    surest = wrong[outcomes.confidence[wrong].argsort(descending=True, stable=True)[:NUM_EXAMPLES]]
    return [
        {
            "image": images.samples[number].key,
            "label": " or ".join(data.space.classes[label] for label in accepted[number]),
            "answer": data.space.answers[outcomes.answers[number]],
            "confidence": outcomes.confidence[number].item(),
        }
        for number in surest.tolist()
    ]


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


def _class_notes(prompts: Sequence[str], classes: Sequence[str], counts: Sequence[int]) -> list[str]:
    notes = []
    if repeated := sorted({name for name in prompts if prompts.count(name) > 1}):
        notes.append(f"class names that stand for more than one class: {', '.join(repeated)}")
    if not any(counts):
        return notes
    if empty := counts.count(0):
        notes.append(f"{empty} of {len(classes)} classes have no image")
    largest = max(range(len(counts)), key=counts.__getitem__)
    notes.append(
        f"always answering {classes[largest]!r} would score acc1 {counts[largest] / sum(counts):.1%}"
    )
    return notes


def _incomplete_notes(missing: str, images: EmbeddedImages) -> list[str]:
    skipped = [f"incomplete: {images.faults.summary()}"] if images.faults.total else []
    return [*([f"incomplete: {missing}"] if missing else []), *skipped]
