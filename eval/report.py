"""`navit-clip report`: run folders and files of results -> one HTML page that needs no other file.

Reads of each run RUN/metrics.jsonl, RUN/config.yaml and RUN/eval/*.jsonl and *.json; what a run does not
have yet is left out. Results of several models on the same data set stand side by side.
"""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from string import Template
from typing import Any, NamedTuple

from eval.drawing import Drawing
from eval.gallery import draw_mistakes, draw_retrieved
from eval.records import Record, check_writable, read_records
from eval.score_figures import draw_cost, draw_reliability
from eval.score_tables import Group, group_records, score_table
from eval.training_figures import draw_curves, resumed_at
from navit_clip.errors import DataError
from navit_clip.json_lines import read_json_lines
from navit_clip.run_settings import run_folder
from navit_clip.weights import CONFIG_FILE, listing

MODEL_FILES = (CONFIG_FILE, "config.json", "checkpoints", "model")
"""By which a folder is known that can be evaluated."""

TEMPLATE = Path(__file__).with_name("report.html")


class Source(NamedTuple):
    """What was found in a run folder, or in a file of results."""

    name: str
    rows: list[dict[str, Any]]
    """Of metrics.jsonl."""
    records: list[Record]
    config: str


def main(argv: Sequence[str]) -> int:
    """Writes the page; the exit code is 0. Errors are NavitClipErrors."""
    parser = argparse.ArgumentParser(
        prog="navit-clip report", description="Runs and results as one HTML page, models side by side."
    )
    parser.add_argument(
        "run", type=Path, nargs="+", help="run folders, model folders with eval/, or files of results"
    )
    parser.add_argument("--out", type=Path, help="the page to write (report.html in the first folder)")
    arguments = parser.parse_args(argv)
    first = arguments.run[0]
    out = arguments.out or (first if first.is_dir() else first.parent) / "report.html"
    check_writable(out, flag="--out")
    page = build_report(*arguments.run)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    print(out)
    return 0


def build_report(*paths: Path) -> str:
    """The page of runs and files of results.

    Raises:
        DataError: a path has neither metrics nor results, and says how it comes to have some; or one of its
            files is not what it should be.
    """
    sources = [_read_source(path) for path in paths]
    groups = group_records([record for source in sources for record in source.records])
    names = ", ".join(source.name for source in sources)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(names),
        about=_about(sources),
        facts="".join(_facts(source, named=len(sources) > 1) for source in sources),
        scores=_section("Scores", "".join(map(score_table, groups))),
        reliability=_section("Reliability", _figures(_reliability(groups))),
        cost=_section("What accuracy costs", _figures(_cost(groups))),
        curves="".join(
            _section(f"Training of {html.escape(source.name)}", _curves(source)) for source in sources
        ),
        mistakes="".join(_mistakes(group) for group in groups),
        gallery="".join(_retrieved(group) for group in groups),
        config="".join(_config(source) for source in sources),
    )


def _read_source(path: Path) -> Source:
    if path.is_file():
        return Source(path.stem, [], _some(read_records(path), path), "")
    files = sorted([*path.glob("eval/*.jsonl"), *path.glob("eval/*.json")])
    records = [record for file in files for record in read_records(file)]
    metrics = path / "metrics.jsonl"
    rows = read_json_lines(metrics) if metrics.is_file() else []
    if not rows:
        _some(records, path)
    config = path / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return Source(path.resolve().name, rows, records, text)


def _some(records: list[Record], path: Path) -> list[Record]:
    """The same records; raises DataError where there are none, with what to do about it."""
    if records:
        return records
    found = "nothing"
    if path.exists():
        found = listing(path) if path.is_dir() else "a file without results"
    raise DataError(
        f"{path}: expected a file of results, or a folder with metrics.jsonl or eval/*.jsonl in it, found "
        f"{found}; {_remedy(path)}"
    )


def _remedy(path: Path) -> str:
    run = run_folder(path)
    if run is not None and run != path.resolve():
        return f"it belongs to a run: navit-clip report {run}"
    if run is not None:
        return "training writes its first row after log_every steps"
    if any((path / name).exists() for name in MODEL_FILES):
        return f"navit-clip eval --model {path} … leaves results there"
    return "navit-clip train leaves them in its run's folder, navit-clip eval in the model's"


def _about(sources: Sequence[Source]) -> str:
    if any(source.rows for source in sources):
        return "Image and text towers trained together on packed batches, by NaViT-CLIP."
    return "Zero-shot evaluation by NaViT-CLIP."


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _facts(source: Source, named: bool) -> str:
    """What a run came to, in five numbers."""
    train = [row for row in source.rows if row["kind"] == "train"]
    if not train:
        return ""
    last = train[-1]
    facts = [
        (f"{last['pairs']:,}", "pairs seen"),
        (f"{last['step']:,}", "steps"),
        (f"{final_loss(train):.4g}", "training loss, mean of the last 5 %"),
        (f"{median(row['pairs_per_second'] for row in train):.3g}", "pairs / s, median"),
        (f"{100 * fmean(row['fill'] for row in train):.1f} %", "of the token budget filled, mean"),
    ]
    name = f'<p class="note">{html.escape(source.name)}</p>' if named else ""
    cells = "".join(f"<div><b>{number}</b><span>{what}</span></div>" for number, what in facts)
    return f'{name}<div class="facts">{cells}</div>'


def final_loss(train: Sequence[Record]) -> float:
    """Mean training loss over the last twentieth of the pairs seen: a run's last row may be of few steps."""
    before = [0, *(row["pairs"] for row in train[:-1])]
    recent = [
        (row["loss"], row["pairs"] - start)
        for start, row in zip(before, train, strict=True)
        if row["pairs"] >= 0.95 * train[-1]["pairs"]
    ]
    return sum(loss * pairs for loss, pairs in recent) / sum(pairs for _, pairs in recent)


def _figures(drawings: Sequence[Drawing]) -> str:
    figures = "".join(
        f"<figure><figcaption>{html.escape(d.title)}</figcaption>{d.svg}</figure>" for d in drawings
    )
    return f'<div class="curves">{figures}</div>' if drawings else ""


def _curves(source: Source) -> str:
    figures = _figures(draw_curves(source.rows))
    if not figures or not resumed_at(source.rows):
        return figures
    return f'<p class="note">Dotted lines: the run was resumed there.</p>{figures}'


def _reliability(groups: Sequence[Group]) -> list[Drawing]:
    drawings = []
    for group in groups:
        records = {label: record for label, record in group.records.items() if "reliability" in record}
        if records:
            drawings.append(draw_reliability(group.dataset, records))
    return drawings


def _cost(groups: Sequence[Group]) -> list[Drawing]:
    return [
        drawing
        for group in groups
        for label, record in group.records.items()
        if "cost" in record
        for drawing in draw_cost(
            f"{group.dataset}, {label}" if group.is_named else group.dataset, record["cost"]
        )
    ]


def _mistakes(group: Group) -> str:
    return "".join(
        _section(
            f"Mistakes that {html.escape(label)} was surest of",
            f'<p class="note">The {len(record["mistakes"])} wrong answers with the highest probability on '
            f"{html.escape(group.dataset)}: the answer, how sure the model was, and what the image is.</p>"
            f"{draw_mistakes(record)}",
        )
        for label, record in group.records.items()
        if record.get("mistakes")
    )


def _retrieved(group: Group) -> str:
    return "".join(
        _section(
            "What captions retrieve" + (f" from {html.escape(label)}" if group.is_named else ""),
            f'<p class="note">{len(record["examples"])} of {record["num_captions"]:,} held-out captions, '
            f"evenly spread over {html.escape(group.dataset)}, each with the images that score highest for "
            "it, best first. The right image is framed; where it is not among them, it stands at the end "
            f"with its place.</p>{draw_retrieved(record)}",
        )
        for label, record in group.records.items()
        if "examples" in record
    )


def _config(source: Source) -> str:
    if not source.config:
        return ""
    name, config = html.escape(source.name), html.escape(source.config)
    return f"<details><summary>config.yaml of {name}</summary><pre>{config}</pre></details>"
