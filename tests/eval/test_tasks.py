from __future__ import annotations

import json

import pytest
import torch

from eval.task_config import EvalConfig, TaskConfig
from eval.tasks import evaluate
from navit_clip.config import load_config
from navit_clip.distributed import World
from navit_clip.errors import ConfigError, DataError
from tests.eval_builders import judged, write_labelled

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def run(*tasks: TaskConfig, num_workers: int = 0):
    config = EvalConfig(tasks=list(tasks), tokens_per_image=9, token_budget=64, num_workers=num_workers)
    return list(evaluate(judged(), config, ALONE))


@pytest.fixture
def shard(tmp_path):
    return write_labelled(tmp_path / "images.tar", [0, 1, 2, 0, 4, 0, 1, 3], broken=[6])


def test_classification_result(shard):
    task = TaskConfig(
        dataset=shard, task="zeroshot_classification", label_key="json.kind", templates=["a {}"]
    )
    (result,) = run(task)
    assert set(result.chance) == {"acc1", "acc5", "mean_per_class_recall"}
    assert set(result.metrics) == set(result.intervals) == {*result.chance, "ece", "nll"}
    assert result.metrics["acc5"] == 1.0
    assert (result.num_samples, result.skipped) == (7, {"undecodable image": 1})
    assert [line["num_samples"] for line in result.details["per_class"]] == [3, 1, 1, 1, 1]
    right = sum(line["recall"] * line["num_samples"] for line in result.details["per_class"])
    assert result.metrics["acc1"] == pytest.approx(right / 7)
    assert any("always answering 'class 0' would score acc1 42.9%" in note for note in result.notes)
    assert any(note.startswith("incomplete: 1 skipped: undecodable image: 1") for note in result.notes)


def test_retrieval_result(shard):
    (result,) = run(TaskConfig(dataset=shard, task="zeroshot_retrieval"))
    assert result.metrics["image_retrieval_recall@10"] == 1.0
    assert result.chance["image_retrieval_recall@1"] == 1 / 7
    assert (result.num_samples, result.details["num_captions"]) == (7, 14)
    example = result.details["examples"][0]
    assert example["caption"] == "a picture called 0"
    assert example["image"] == "images/sample000"
    assert len(example["retrieved"]) == 5
    if example["rank"] < 5:
        assert example["retrieved"][example["rank"]] == example["image"]


def test_record_is_clip_benchmarks_with_ours_beside_it(shard):
    (result,) = run(TaskConfig(dataset=shard, task="zeroshot_retrieval"))
    record = json.loads(json.dumps(result.as_json(model="runs/a", pretrained="step-1"), allow_nan=False))
    assert list(record)[:6] == ["dataset", "model", "pretrained", "task", "metrics", "language"]
    assert (record["dataset"], record["model"], record["language"]) == (shard, "runs/a", "en")
    assert record["protocol"]["task"]["caption_key"] == "txt"
    assert record["tokens_per_image"] == 9


def test_repeated_and_empty_classes_are_noted(shard, tmp_path):
    (tmp_path / "names.txt").write_text("crane\ntench\ncrane\na\nb\nc\n")
    names = str(tmp_path / "names.txt")
    (result,) = run(TaskConfig(dataset=shard, task="zeroshot_classification", class_names=names))
    assert "class names that stand for more than one class: crane" in result.notes
    assert "1 of 6 classes have no image" in result.notes


def test_no_sample_has_a_label_or_a_caption(shard, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"no sample says what its class is; 8 skipped"):
        run(TaskConfig(dataset=shard, task="zeroshot_classification", label_key="json.absent"))
    with pytest.raises(DataError, match=r"not one of 8 samples could be used; 8 skipped: no caption"):
        run(TaskConfig(dataset=shard, task="zeroshot_retrieval", caption_key="json.absent"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_few_class_names(shard, tmp_path, num_workers):
    (tmp_path / "names.txt").write_text("a\nb\n")
    names = str(tmp_path / "names.txt")
    with pytest.raises(DataError, match=r"^images/sample002: label 2 is outside the 2 class names"):
        run(
            TaskConfig(dataset=shard, task="zeroshot_classification", class_names=names),
            num_workers=num_workers,
        )


@pytest.mark.parametrize("setting", ["label_key", "caption_key"])
@pytest.mark.parametrize("value", ["kind", "json.", "jpg"])
def test_a_key_of_unknown_form_is_named(setting, value):
    with pytest.raises(ConfigError, match=f"^{setting}: expected .* found '{value}'"):
        TaskConfig(dataset="a.tar", task="zeroshot_retrieval", **{setting: value})


def test_where_a_data_set_lies():
    task = TaskConfig(
        dataset="wds/vtab/pets", task="zeroshot_retrieval", dataset_root="data/{dataset_cleaned}/{dataset}"
    )
    assert task.path == "data/vtab-pets/vtab/pets"
    assert TaskConfig(dataset="a/{0..3}.tar", task="zeroshot_retrieval").path == "a/{0..3}.tar"
    with pytest.raises(ConfigError, match="dataset: expected a name"):
        TaskConfig(dataset="", task="zeroshot_retrieval")


def test_every_suite_can_be_read(root):
    for path in sorted((root / "configs" / "eval").glob("*.yaml")):
        assert load_config(EvalConfig, path).tasks


def test_mistyped_settings_name_their_neighbours(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text("tasks: [{dataset: a, task: zeroshot_retrieval, caption: txt}]")
    with pytest.raises(ConfigError, match="caption"):
        load_config(EvalConfig, path)
    path.write_text("token_per_image: 3")
    with pytest.raises(ConfigError, match="did you mean tokens_per_image"):
        load_config(EvalConfig, path)


@pytest.mark.real_data
def test_stamps_by_category(real_shards):
    path = str(real_shards / "tuxpaint-stamps-test.tar")
    category, retrieval = run(
        TaskConfig(dataset=path, task="zeroshot_classification", label_key="json.category"),
        TaskConfig(dataset=path, task="zeroshot_retrieval"),
    )
    assert len(category.details["per_class"]) == 12
    assert category.num_samples == retrieval.num_samples == retrieval.details["num_captions"] == 87
