"""Records of results -> groups that compare, and their tables."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.records import Record
from eval.result import UNITS, shown_metric
from navit_clip.config import flat_settings


@dataclass(frozen=True, slots=True)
class Group:
    """Results of one task on one data set, by what tells them apart."""

    dataset: str
    task: str
    records: dict[str, Record]
    """A label -> a result."""
    is_named: bool
    """Whether a reader has to be told whose results these are."""


def group_records(records: Sequence[Record]) -> list[Group]:
    """Results by data set and task; a label names the model, and where that is not enough, the settings."""
    groups = []
    names = _model_names([record["model"] for record in records])
    for dataset, task in dict.fromkeys((record["dataset"], record["task"]) for record in records):
        own = [record for record in records if (record["dataset"], record["task"]) == (dataset, task)]
        labelled = dict(zip(_labels(own, names), own, strict=True))
        groups.append(Group(dataset, task, labelled, is_named=len(names) > 1 or len(own) > 1))
    return groups


def score_table(group: Group) -> str:
    """HTML: every metric of every model, where it lies in 95 of 100 resamples, and what guessing gets."""
    columns = ["metric", *(["model"] if group.is_named else []), "score", "95 %", "chance", "0 to 100 %"]
    kinds = {"score": "number", "95 %": "number", "chance": "number", "0 to 100 %": "bar"}
    heads = "".join(f'<th class="{kinds.get(column, "")}">{column}</th>' for column in columns)
    names = dict.fromkeys(name for record in group.records.values() for name in record["metrics"])
    rows = "".join(
        _row(name, label, record, group.is_named, is_first=number == 0)
        for name in names
        for number, (label, record) in enumerate(group.records.items())
        if name in record["metrics"]
    )
    return (
        f'<div class="scores"><h3>{html.escape(group.dataset)} · {html.escape(group.task)}</h3>'
        f"<table><tr>{heads}</tr>{rows}</table>{''.join(_notes(group))}</div>"
    )


def _row(name: str, label: str, record: Record, is_named: bool, is_first: bool) -> str:
    value, chance = record["metrics"][name], record["chance"].get(name)
    low, high = record.get("intervals", {}).get(name, (None, None))
    shown = "" if low is None else f"{shown_metric(name, low)} to {shown_metric(name, high)}"
    cells = [
        f"<td>{html.escape(name) if is_first else ''}</td>",
        *([f"<td>{html.escape(label)}</td>"] if is_named else []),
        f'<td class="number">{shown_metric(name, value)}</td>',
        f'<td class="number quiet">{shown}</td>',
        f'<td class="number quiet">{"" if chance is None else shown_metric(name, chance)}</td>',
        f'<td class="bar">{"" if name in UNITS else _bar(value, low, high, chance)}</td>',
    ]
    return f'<tr class="{"first" if is_first else ""}">{"".join(cells)}</tr>'


def _bar(value: float, low: float | None, high: float | None, chance: float | None) -> str:
    band = ""
    if low is not None and high is not None:
        band = f'<s style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></s>'
    mark = "" if chance is None else f'<u style="left:{100 * chance:.1f}%"></u>'
    return f'<div><i style="width:{100 * value:.1f}%"></i>{band}{mark}</div>'


def _notes(group: Group) -> Iterator[str]:
    """What a reader must know of each result: how much of what was judged, by which rule, and what is odd."""
    for label, record in group.records.items():
        about = [f"{record['num_samples']:,} images", f"{_tokens(record)} tokens each"]
        scoring = record.get("protocol", {}).get("scoring")
        about += [f"scoring: {scoring}"] if scoring else []
        prefix = f"<b>{html.escape(label)}</b>: " if group.is_named else ""
        yield f'<p class="note">{prefix}{html.escape("; ".join(about))}</p>'
        for note in record["notes"]:
            kind = "note warning" if note.startswith("incomplete") else "note"
            yield f'<p class="{kind}">{html.escape(note)}</p>'


def _tokens(record: Record) -> str:
    if "mean_tokens" in record:
        return f"{record['mean_tokens']:.0f}"
    return f"at most {record['tokens_per_image']}"


def _model_names(models: Sequence[str]) -> dict[str, str]:
    """Each model -> the last parts of its path, as few as tell all of them apart."""
    paths = {model: Path(model).parts for model in models}
    for count in range(1, max(map(len, paths.values()), default=0)):
        names = {model: "/".join(parts[-count:]) for model, parts in paths.items()}
        if len(set(names.values())) == len(names):
            return names
    return {model: model for model in models}


def _labels(records: Sequence[Record], model_names: Mapping[str, str]) -> list[str]:
    """The shortest names that tell the records apart: of the model, then with weights, then with settings."""
    names = [model_names[record["model"]] for record in records]
    if len(set(names)) < len(names):
        weights = [Path(str(record.get("pretrained", ""))).parent.name for record in records]
        if len(set(weights)) > 1:
            names = [f"{name} {weight}".strip() for name, weight in zip(names, weights, strict=True)]
    if len(set(names)) < len(names):
        settings = [flat_settings(record.get("protocol", {})) for record in records]
        differing = [key for key in settings[0] if len({str(s.get(key)) for s in settings}) > 1]
        names = [
            ", ".join([name, *(f"{key.rpartition('.')[2]} {setting.get(key)}" for key in differing)])
            for name, setting in zip(names, settings, strict=True)
        ]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]
