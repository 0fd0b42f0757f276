from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from eval.records import read_records, write_record
from eval.report import build_report, final_loss, main
from eval.score_figures import pareto_front
from eval.score_tables import group_records
from eval.task_config import EvalConfig, TaskConfig
from eval.tasks import evaluate
from eval.training_figures import MOST_POINTS, QUANTITIES, draw_curves, whole_windows
from navit_clip.distributed import World
from navit_clip.errors import ConfigError, DataError
from tests.eval_builders import judged, small_model, write_labelled


def train_row(step: int) -> dict:
    values = {quantity.key: 0.9 + 0.01 * step for quantity in QUANTITIES}
    return {"kind": "train", "step": step, "pairs": 48 * step, **values}


def eval_row(step: int) -> dict:
    metrics = {"image_retrieval_recall@10": 0.1 * step, "text_retrieval_recall@10": 0.05}
    at = {"kind": "eval", "step": step, "pairs": 48 * step}
    task = {"dataset": "stamps", "task": "zeroshot_retrieval"}
    return {**at, **task, "metrics": metrics, "chance": dict.fromkeys(metrics, 0.02)}


@pytest.fixture
def run(tmp_path):
    """A run folder with every file that the report reads."""
    shard = write_labelled(tmp_path / "images <1>.tar", [0, 1, 2, 0, 1, 4, 5, 6])
    task = TaskConfig(dataset="pictures & more", dataset_root=shard, task="zeroshot_retrieval")
    config = EvalConfig(tasks=[task], tokens_per_image=9, token_budget=64, num_workers=0)
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    (result,) = evaluate(judged(), config, alone)
    folder = tmp_path / "a <run>"
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "pictures.json").write_text(json.dumps(result.as_json("run", "step")))
    rows = [train_row(1), train_row(2)]
    rows += [
        {"kind": "validation", "step": step, "pairs": 48 * step, "loss": 3.0, "skipped": 0} for step in (1, 2)
    ]
    rows += [eval_row(1), eval_row(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text("model: <small>\n")
    return folder


class Balance(HTMLParser):
    """Collects references, and notices tags that are closed out of order."""

    void = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.references = [], []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_no_other_file(run):
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(reference.startswith(("data:image/", "#")) for reference in parser.references)
    assert "url(http" not in page
    assert "$" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)


def test_page_shows_scores_curves_and_pictures(run):
    page = build_report(run)
    assert "<h1>a &lt;run&gt;</h1>" in page
    assert "pictures &amp; more" in page
    assert "model: &lt;small&gt;" in page
    for title in ("Training loss", "Validation loss", "Batch fill", "stamps, zeroshot_retrieval"):
        assert f'aria-label="{title}"' in page
    record = json.loads((run / "eval" / "pictures.json").read_text())
    assert page.count('class="right"') == len(record["examples"]) == 12
    missed = sum(example["rank"] >= 5 for example in record["examples"])
    assert page.count("<img") == 12 * 5 + missed


def test_what_a_run_does_not_have_yet_is_left_out(run):
    (run / "eval" / "pictures.json").unlink()
    (run / "config.yaml").unlink()
    page = build_report(run)
    assert "<h2>Scores</h2>" not in page
    assert "Training loss" in page


def test_pictures_that_are_gone_are_said_to_be(run):
    next(run.parent.glob("*.tar")).unlink()
    assert "The pictures cannot be shown: no shard matches" in build_report(run)


def test_pictures_that_no_longer_are_pictures_are_said_to_be(run):
    write_labelled(next(run.parent.glob("*.tar")), [0] * 8, broken=range(8))
    assert "The pictures cannot be shown: undecodable image" in build_report(run)


def test_a_page_that_cannot_be_written(run):
    (run / "file").touch()
    with pytest.raises(ConfigError, match=r"--out: .* cannot be written: "):
        main([str(run), "--out", str(run / "file" / "page.html")])


def test_no_run_and_broken_files(tmp_path, run):
    model = run / "checkpoints" / "step-1" / "model"
    model.mkdir(parents=True)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").touch()
    begun = tmp_path / "begun"
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "config.yaml").touch()
    expected = "expected a file of results, or a folder with metrics.jsonl or eval/\\*.jsonl in it, found"
    for path, found in (
        (
            tmp_path / "absent",
            "nothing; navit-clip train leaves them in its run's folder, navit-clip eval in",
        ),
        (tmp_path, "a <run>, begun, .*; navit-clip train leaves them"),
        (tmp_path / "empty.jsonl", "a file without results; "),
        (tmp_path / "exported", r"config\.json; navit-clip eval --model .*/exported … leaves results there$"),
        (model, f"an empty folder; it belongs to a run: navit-clip report {run}$"),
        (begun, r"checkpoints, config\.yaml; training writes its first row after log_every steps$"),
    ):
        with pytest.raises(DataError, match=f"^{path}: {expected} {found}"):
            build_report(path)
    (run / "metrics.jsonl").write_text('{"kind": "train"\n{"kind": "train"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1: expected a JSON object, found"):
        build_report(run)


def test_where_a_run_was_resumed_stands_a_line_in_every_curve(run):
    before = build_report(run)
    assert "resumed" not in before
    with (run / "metrics.jsonl").open("a") as file:
        for _ in range(2):  # killed, and resumed again at the same step
            file.write('{"kind": "resumed", "step": 1, "pairs": 60, "ranks": 2}\n')
    page = build_report(run)
    assert page.count("the run was resumed there") == 1
    dotted = re.compile(r"stroke-dasharray: 0\.8,1\.6")
    assert (len(dotted.findall(before)), len(dotted.findall(page))) == (0, before.count("<svg") - 0)


def test_a_row_that_is_still_being_written_is_left_out(run):
    before = build_report(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert build_report(run) == before


def test_curves_are_svg_in_the_pages_colours():
    drawings = draw_curves([train_row(step) for step in range(1, 4 * MOST_POINTS)])
    assert [drawing.title for drawing in drawings] == [quantity.title for quantity in QUANTITIES]
    for drawing in drawings:
        ElementTree.fromstring(drawing.svg)
        assert set(re.findall(r"(?:stroke|fill): ([^;\"]+)", drawing.svg)) <= {
            "none",
            "var(--ink)",
            "var(--faint)",
            "var(--series-0)",
        }
        assert len(drawing.svg) < 60_000
    assert draw_curves([train_row(1), train_row(2)]) == draw_curves([train_row(1), train_row(2)])


@pytest.fixture(scope="module")
def judged_models(tmp_path_factory):
    """Results of two models on one data set, with costs and mistakes."""
    folder = tmp_path_factory.mktemp("judged")
    shard = write_labelled(folder / "images.tar", [0, 1, 2, 0, 1, 2])
    task = TaskConfig(
        dataset="pictures",
        dataset_root=shard,
        task="zeroshot_classification",
        label_key="json.kind",
        cost_tokens=[4, 9, 16],
    )
    config = EvalConfig(tasks=[task], tokens_per_image=9, token_budget=64, num_workers=0)
    for seed in (0, 1):
        model = judged(small_model(seed))
        (result,) = evaluate(model, config, World(rank=0, size=1, device=torch.device("cpu")))
        write_record(result.as_json(f"runs/model-{seed}", "step"), folder / f"{seed}.jsonl")
    return folder


@pytest.fixture
def results(judged_models, tmp_path):
    """A copy of these, to change; the pictures are where they were."""
    for path in judged_models.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_models_side_by_side(results):
    page = build_report(results / "0.jsonl", results / "1.jsonl")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<td>model-0</td>") == page.count("<td>model-1</td>") == 4  # acc1, recall, ece, nll
    for title in (
        "pictures",
        "pictures, model-0: accuracy over tokens",
        "pictures, model-1: accuracy over time",
    ):
        assert f'aria-label="{title}"' in page
    for axis in (
        "acc1 (%)",
        "tokens per image, mean",
        "milliseconds per image",
        "confidence",
        "accuracy: share",
    ):
        assert axis in page
    assert "Mistakes that model-0 was surest of" in page


def test_models_on_different_data_sets_are_named(results):
    (record,) = read_records(results / "1.jsonl")
    write_record({**record, "dataset": "others"}, results / "others.jsonl")
    page = build_report(results / "0.jsonl", results / "others.jsonl")
    assert page.count("<td>model-0</td>") == page.count("<td>model-1</td>") == 4
    assert 'aria-label="others, model-1: accuracy over tokens"' in page
    assert "<td>model-0</td>" not in build_report(results / "0.jsonl")


def test_models_of_one_name_are_told_apart_by_their_folders(results):
    (record,) = read_records(results / "0.jsonl")
    groups = group_records([{**record, "model": "runs/a/export"}, {**record, "model": "runs/b/export/"}])
    assert [list(group.records) for group in groups] == [["a/export", "b/export"]]


def test_a_curve_of_one_point_is_not_drawn():
    assert draw_curves([train_row(1)]) == []
    validation = {"kind": "validation", "step": 2, "pairs": 96, "loss": 3.0}
    titles = [drawing.title for drawing in draw_curves([train_row(1), train_row(2), validation])]
    assert titles == [quantity.title for quantity in QUANTITIES]


def test_ticks_are_the_numbers_themselves():
    rows = [{**train_row(step), "logit_bias": -9.99 - 0.0001 * step} for step in range(1, 9)]
    (bias,) = (drawing.svg for drawing in draw_curves(rows) if drawing.title == "Logit bias")
    ticks = re.findall(">\N{MINUS SIGN}(\\d+\\.\\d+)<", bias)
    assert len(ticks) > 2
    assert all(tick.startswith("9.99") for tick in ticks), "and not what they differ by"


def test_results_of_one_model_are_told_apart_by_their_settings(results):
    (record,) = read_records(results / "0.jsonl")
    other = json.loads(json.dumps(record))
    other["protocol"]["images"]["tokens_per_image"] = 64
    (group,) = group_records([record, other])
    assert list(group.records) == ["model-0, tokens_per_image 9", "model-0, tokens_per_image 64"]
    (group,) = group_records([record, record])
    assert list(group.records) == ["model-0 (1)", "model-0 (2)"]


def test_pareto_front():
    costs, scores = [4, 1, 2, 3, 1], [0.5, 0.3, 0.2, 0.6, 0.1]
    points = [{"cost": cost, "acc1": score} for cost, score in zip(costs, scores, strict=True)]
    assert [point["cost"] for point in pareto_front(points, "cost")] == [1, 3]


def test_the_final_loss_weighs_rows_by_their_pairs():
    rows = [{"pairs": 900, "loss": 7.0}, {"pairs": 960, "loss": 4.0}, {"pairs": 1000, "loss": 9.0}]
    assert final_loss(rows) == pytest.approx((60 * 4.0 + 40 * 9.0) / 100)
    assert final_loss(rows[:1]) == 7.0


def test_a_row_of_few_steps_is_part_of_the_one_before():
    points = np.array([[100.0, 4.0], [200.0, 3.0], [230.0, 9.0], [330.0, 2.0], [340.0, 24.0]])
    expected = [[100, 4.0], [230, (100 * 3 + 30 * 9) / 130], [340, (100 * 2 + 10 * 24) / 110]]
    np.testing.assert_allclose(whole_windows(points), expected)
    np.testing.assert_allclose(whole_windows(points[:1]), points[:1])
