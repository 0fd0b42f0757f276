"""The hub, as far as it answers without a network: names, cards, and what is said where it is away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from navit_clip.errors import CheckpointError, ExportError
from navit_clip.huggingface.export import main as export
from navit_clip.huggingface.hub import PATTERNS, fetch, push
from navit_clip.huggingface.model_card import CardFacts, _evaluation, model_card
from navit_clip.huggingface.run_facts import RunFacts, read_run_facts
from navit_clip.huggingface.verification import Verification
from navit_clip.tokenizer import train_tokenizer
from navit_clip.weights import load_model, save_model, weights_hash
from tests.huggingface.test_export import CAPTIONS, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with a recipe, evaluations during it and afterwards, of this checkpoint and of an earlier one."""
    folder = tmp_path_factory.mktemp("runs") / "pets-s16"
    model = folder / "checkpoints" / "step-00000020" / "model"
    save_model(trained(), train_tokenizer(CAPTIONS * 2, 600), model)
    (folder / "checkpoints" / "latest").write_text("step-00000020")
    settings = {
        "pairs": 1000,
        "seed": 3,
        "init_from": {"image": "", "text": "", "weight_decay": False},
        "data": {
            "shards": ["/somewhere/cc3m-{000..331}.tar"],
            "resolution": {"kind": "native", "min_side": 64, "same_in_batch": False},
            "drop": {"kind": "constant", "rate": 0.5, "max_rate": 0.9, "schedule": None},
        },
        "optimizer": {"learning_rate": 0.001},
        "schedule": {"kind": "cosine", "warmup_pairs": 10, "timescale_pairs": 1000000},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    row = {"dataset": "stamps", "task": "zeroshot_retrieval", "num_samples": 87, "tokens_per_image": 256}
    rows = [
        {
            **row,
            "step": step,
            "pairs": 51 * step + 8,
            "metrics": {"image_retrieval_recall@1": value},
            "chance": {},
        }
        for step, value in ((10, 0.25), (20, 0.5))
    ]
    (folder / "metrics.jsonl").write_text(
        "\n".join(map(json.dumps, [{"loss": 3.0}, {"step": 10, "pairs": 509}, *rows]))
    )
    (folder / "eval").mkdir()
    record = {
        **row,
        "dataset": "/data/pets",
        "task": "zeroshot_classification",
        "num_samples": 1234,
        "metrics": {"acc1": 0.75, "nll": 1.4471},
        "intervals": {"acc1": [0.71, 0.7849]},
        "chance": {"acc1": 0.027},
        "protocol": {"scoring": "the class whose prompts fit best"},
        "weights": weights_hash(load_model(model).model),
        "complete": False,
    }
    earlier = {**record, "metrics": {"acc1": 0.99}, "weights": "of an earlier checkpoint"}
    lines = [record, earlier]
    (folder / "eval" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_card_says_how_the_model_was_trained_and_judged(run, tmp_path):
    export([str(run), str(tmp_path / "out"), "--license", "apache-2.0"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    header = card.data.to_dict()
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "zero-shot-image-classification"
    for line in (
        "# pets-s16\n",
        f'folder = "{tmp_path / "out"}"  # where this folder is',
        "model = AutoModel.from_pretrained(folder).eval()",
        "| image-text pairs seen | 1,028 |",
        "| image-text pairs to see in all | 1000 |",
        "| image sides drawn (pixels) | native, min side 64 |",
        "| patches dropped | constant, rate 0.5 |",
        "| schedule | cosine, warmup pairs 10 |",
        "| peak learning rate | 0.001 |",
        "Data: `cc3m-{000..331}.tar`.",
        "| stamps | zero-shot retrieval | image retrieval, recall@1 | 50.0% |  |  | 87 | 256 |  |  |",
        "| pets | zero-shot classification | top-1 accuracy | 75.0% | 71.0% to 78.5% | 2.7% | "
        "1,234 (not all) | 256 |  | 1 |",
        "| pets | zero-shot classification | negative log-likelihood | 1.447 |  |  | "
        "1,234 (not all) | 256 |  | 1 |",
        "\n1. the class whose prompts fit best\n",
    ):
        assert line in card.text
    for line in ("/somewhere", "99.0%", "25.0%", "towers started from", "zeroshot_"):
        assert line not in card.text


def test_the_newest_result_of_a_protocol_counts(run, tmp_path):
    record = {"dataset": "stamps", "task": "zeroshot_retrieval", "num_samples": 87, "tokens_per_image": 256}
    weights = weights_hash(load_model(run / "checkpoints" / "step-00000020" / "model").model)
    lines = [
        {**record, "metrics": {"image_retrieval_recall@1": 0.6}, "weights": weights},
        {**record, "metrics": {"image_retrieval_recall@1": 0.4}, "weights": weights, "tokens_per_image": 64},
    ]
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "eval" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = read_run_facts(copy, weights).results
    found = {(row["tokens_per_image"], row["metrics"]["image_retrieval_recall@1"]) for row in results}
    assert found == {(256, 0.6), (64, 0.4)}


def test_results_of_other_protocols_stand_beside_each_other(run, tmp_path):
    weights = weights_hash(load_model(run / "checkpoints" / "step-00000020" / "model").model)
    record = {"dataset": "imagenet1k", "task": "zeroshot_classification", "num_samples": 87}
    record |= {"tokens_per_image": 256, "weights": weights}
    lines = [
        {**record, "metrics": {"acc1": score}, "protocol": {"scoring": "argmax", "images": {"keep": keep}}}
        for keep, score in ((1.0, 0.5), (1.0, 0.7), (0.25, 0.3))
    ]
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "eval", ignore_errors=True)
    for folder, own in (("checkpoints/step-00000020", lines[:1]), (".", lines[1:])):
        (copy / folder / "eval").mkdir()
        text = "".join(json.dumps(line) + "\n" for line in own) + "\n"
        (copy / folder / "eval" / "results.jsonl").write_text(text)
    with (copy / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "train", "st')  # of a run that still goes on
    results = [row for row in read_run_facts(copy, weights).results if row["dataset"] == "imagenet1k"]
    assert sorted(row["protocol"]["images"]["keep"] for row in results) == [0.25, 1.0]
    table = _evaluation(results)
    assert "| 30.0% |" in table
    assert "| keep 0.25 | 1 |" in table
    assert table.endswith("\n1. argmax")


def test_each_scoring_has_a_row_and_a_rule_of_its_own():
    """ObjectNet's three scorings differ by many points; data sets are told apart by their paths."""
    record = {"task": "zeroshot_classification", "num_samples": 87, "tokens_per_image": 256}
    scorings = ("among 113 classes", "the best of 125 ids", "among all 1000 ids")
    records = [
        {**record, "dataset": "objectnet", "metrics": {"acc1": number / 10}, "protocol": {"scoring": scoring}}
        for number, scoring in enumerate(scorings, start=1)
    ]
    elsewhere = {"dataset": "wds/objectnet", "metrics": {"acc1": 0.4}, "protocol": {"scoring": scorings[1]}}
    shards = {"dataset": "/data/held-out/*.tar", "metrics": {"acc1": 0.5}}
    table = _evaluation([*records, {**record, **elsewhere}, {**record, **shards}])
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if "top-1" in line]
    assert [(row[0], row[3]) for row in rows] == [
        *(("objectnet", share) for share in ("10.0%", "20.0%", "30.0%")),
        ("wds/objectnet", "40.0%"),
        ("held-out/*.tar", "50.0%"),
    ]
    assert [row[-1] for row in rows[:4]] == ["1", "2", "3", "2"]
    assert table.endswith("\n1. among 113 classes\n2. the best of 125 ids\n3. among all 1000 ids")


@pytest.mark.parametrize("given", [".", "checkpoints/step-00000020", "checkpoints/step-00000020/model"])
@pytest.mark.parametrize("place", [".", "checkpoints/step-00000020", "checkpoints/step-00000020/model"])
@pytest.mark.parametrize("config", [True, False])
def test_results_count_wherever_an_evaluation_left_them(run, tmp_path, given, place, config):
    """At the run, the checkpoint or the model, whichever of them is exported; of these weights alone."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("eval", "metrics.jsonl"))
    if not config:
        (copy / "config.yaml").unlink()
    record = {"dataset": "stamps", "task": "zeroshot_retrieval", "tokens_per_image": 256}
    lines = [{**record, "num_samples": n, "weights": weights} for n, weights in ((1, "these"), (2, "others"))]
    (copy / place / "eval").mkdir()
    (copy / place / "eval" / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = [row["num_samples"] for row in read_run_facts(copy / given, "these").results]
    nothing_says_that_it_is_a_run = not config and place == "." and given != "."
    assert found == ([] if nothing_says_that_it_is_a_run else [1])


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("siglip2", 'folder = "me/small"\n'),
        ("onnx", 'folder = huggingface_hub.snapshot_download("me/small")\n'),
        ("open_clip", 'folder = "hf-hub:me/small"\n'),
    ],
)
def test_the_card_of_a_pushed_model_names_its_repository(form, line):
    facts = CardFacts(
        form=form,
        tower="both",
        name="small",
        folder=Path("runs/small/export"),
        repository="me/small",
        tokens_per_image=256,
        license=None,
        run=RunFacts([], [], []),
    )
    card = model_card(trained().config, facts, Verification(1, 0.0, 1, 0.0))
    assert line in card
    assert "runs/small" not in card
    compile(card.split("```python\n")[1].split("```")[0], "snippet", "exec")


RESPONSE = SimpleNamespace(headers={}, request=None)


def answer(error: Exception, cause: Exception | None = None):
    def fetching(*_, **__):
        raise error from cause

    return fetching


def test_a_push_without_a_network_says_so_and_leaves_the_folder(run, tmp_path, monkeypatch):
    with pytest.raises(
        ExportError, match=r"--push someone/stamps: .* is whole, and not on the hub: offline mode is on"
    ):
        export([str(run), str(tmp_path / "out"), "--push", "someone/stamps"])
    assert (tmp_path / "out" / "config.json").exists()
    for error, reason in (
        (
            HTTPError("[Errno 111] Connection refused"),
            "it cannot be reached ([Errno 111] Connection refused)",
        ),
        (LocalTokenNotFoundError("Token is required"), "nobody is logged in (hf auth login)"),
    ):
        monkeypatch.setattr(HfApi, "create_repo", answer(error))
        with pytest.raises(ExportError) as raised:
            push(tmp_path / "out", "someone/stamps")
        assert str(raised.value).endswith(f"{tmp_path / 'out'} is whole, and not on the hub: {reason}")


@pytest.mark.parametrize("name", ["stamps", "a/b/c", "someone/ends-with-.", "someone/two--dashes", ""])
def test_impossible_names_are_refused_before_anything_is_done(run, tmp_path, name):
    with pytest.raises(ExportError, match="--push"):
        export([str(run), str(tmp_path / "out"), "--push", name])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match="--push"):
        push(tmp_path, name)


def test_nothing_that_runs_is_fetched():
    assert not [pattern for pattern in PATTERNS if pattern.endswith((".py", ".bin", ".pt", "*"))]


@pytest.mark.parametrize(
    ("answered", "reason"),
    [
        (
            answer(
                LocalEntryNotFoundError("Got: ConnectError\nAn error happened"), ConnectionError("no route")
            ),
            "it cannot be reached (no route), and there is no copy in the cache",
        ),
        (
            answer(LocalEntryNotFoundError("Got: …"), OfflineModeIsEnabled("Cannot reach it")),
            "offline mode is on (HF_HUB_OFFLINE), and there is no copy in the cache",
        ),
        (
            answer(RepositoryNotFoundError("401 Client Error", response=RESPONSE)),
            "there is no such repository, or it is private (hf auth login)",
        ),
        (
            answer(GatedRepoError("403 Client Error", response=RESPONSE)),
            "access has to be asked for on its page, and whoever has it be logged in (hf auth login)",
        ),
        (answer(RevisionNotFoundError("404 Client Error", response=RESPONSE)), "it has no such revision"),
        (answer(TimeoutError()), "it cannot be reached (TimeoutError)"),
    ],
)
def test_why_nothing_came_from_the_hub_is_one_clear_line(monkeypatch, answered, reason):
    monkeypatch.setattr("navit_clip.huggingface.hub.snapshot_download", answered)
    with pytest.raises(CheckpointError) as raised:
        fetch("someone/nothing")
    said = f"someone/nothing: no such folder here, and not to be had from the hub: {reason}"
    assert str(raised.value) == said


def test_a_push_leaves_what_evaluations_left_here(tmp_path, monkeypatch):
    sent = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: "https://hub/me/small")
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **settings: sent.update(settings))
    assert push(tmp_path, "me/small") == "https://hub/me/small"
    files = ["config.json", "eval/results.jsonl", "eval/vectors/images/1.npy", "evaluation.md"]
    kept = filter_repo_objects(files, ignore_patterns=sent["ignore_patterns"])
    assert list(kept) == ["config.json", "evaluation.md"]
