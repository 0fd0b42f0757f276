"""`navit-clip report`: a run folder -> one HTML page that needs no other file.

Reads RUN/metrics.jsonl, RUN/config.yaml and RUN/eval/*.json; what a run does not have yet is left out.
"""

from __future__ import annotations

import argparse
import html
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from string import Template
from typing import Any

from eval.figures import draw_curves
from eval.gallery import draw_gallery
from navit_clip.errors import ConfigError, DataError

TEMPLATE = Path(__file__).with_name("report.html")


def main(argv: Sequence[str]) -> int:
    """Writes the page; the exit code is 0. Errors are NavitClipErrors."""
    parser = argparse.ArgumentParser(prog="navit-clip report", description="A run as one HTML page.")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--out", type=Path, help="the page to write (RUN/report.html)")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.run / "report.html"
    page = build_report(arguments.run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error
    print(out)
    return 0


def build_report(run: Path) -> str:
    """The page of a run.

    Raises:
        DataError: the folder has neither metrics nor results, or one of its files is not JSON.
    """
    rows = _read_rows(run / "metrics.jsonl")
    records = [_read_json(path.read_text(encoding="utf-8"), path) for path in sorted(run.glob("eval/*.json"))]
    if not rows and not records:
        raise DataError(f"{run}: not a run folder: it has neither metrics.jsonl nor eval/*.json")
    config = run / "config.yaml"
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(run.resolve().name),
        facts=_facts([row for row in rows if row["kind"] == "train"]),
        scores=_section("Scores beside chance", "".join(map(_score_table, records))),
        curves=_section("Training", _curves(rows)),
        gallery="".join(_gallery(record) for record in records if "examples" in record),
        config=html.escape(config.read_text(encoding="utf-8")) if config.is_file() else "",
    )


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # The last line of a run that is being written, or was killed, may be half of one.
    return [_read_json(line, path) for line in lines if line.endswith("\n")]


def _read_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _facts(train: Sequence[dict[str, Any]]) -> str:
    """What the run came to, in five numbers."""
    if not train:
        return ""
    last = train[-1]
    recent = train[-max(1, len(train) // 20) :]
    facts = [
        (f"{last['pairs']:,}", "pairs seen"),
        (f"{last['step']:,}", "steps"),
        (f"{fmean(row['loss'] for row in recent):.4g}", "training loss, mean of the last 5 %"),
        (f"{median(row['pairs_per_second'] for row in train):.3g}", "pairs / s, median"),
        (f"{100 * fmean(row['fill'] for row in train):.1f} %", "of the token budget filled, mean"),
    ]
    return (
        '<div class="facts">'
        + "".join(f"<div><b>{n}</b><span>{what}</span></div>" for n, what in facts)
        + "</div>"
    )


def _score_table(record: dict[str, Any]) -> str:
    heading = f"{html.escape(record['dataset'])} · {html.escape(record['task'])}"
    about = f"{record['num_samples']:,} images, at most {record['tokens_per_image']} tokens each"
    rows = "".join(
        _score_row(name, value, record["chance"][name]) for name, value in record["metrics"].items()
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in record["notes"])
    return (
        f'<div class="scores"><h3>{heading} <span class="quiet">({about})</span></h3><table>'
        '<tr><th>metric</th><th class="number">score (%)</th><th class="number">chance (%)</th>'
        '<th class="bar">0 to 100 %, chance marked</th></tr>'
        f"{rows}</table>{notes}</div>"
    )


def _score_row(name: str, value: float, chance: float) -> str:
    score, guess = f"{100 * value:.1f}", f"{100 * chance:.1f}"
    bar = f'<div><i style="width:{score}%"></i><u style="left:{guess}%"></u></div>'
    cells = [
        f"<td>{html.escape(name)}</td>",
        *(f'<td class="number">{number}</td>' for number in (score, guess)),
    ]
    return f'<tr>{"".join(cells)}<td class="bar">{bar}</td></tr>'


def _curves(rows: Sequence[dict[str, Any]]) -> str:
    drawings = draw_curves(rows)
    figures = "".join(
        f"<figure><figcaption>{html.escape(d.title)}</figcaption>{d.svg}</figure>" for d in drawings
    )
    return f'<div class="curves">{figures}</div>' if drawings else ""


def _gallery(record: dict[str, Any]) -> str:
    about = (
        f"{len(record['examples'])} of {record['num_captions']:,} held-out captions, evenly spread over "
        f"{html.escape(record['dataset'])}, each with the images that score highest for it, best first. "
        "The right image is framed; where it is not among them, it stands at the end with its place."
    )
    return _section("What captions retrieve", f'<p class="note">{about}</p>{draw_gallery(record)}')
