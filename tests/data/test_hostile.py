"""Nothing in a shard kills a run, runs, or writes: each bad sample is counted, each good one used."""

import logging
from collections import Counter
from pathlib import Path

import pytest

from navit_clip.cli import main
from navit_clip.data.config import DataConfig
from navit_clip.data.loader import TrainLoader
from navit_clip.data.resolution import ResolutionConfig
from tests.data_builders import small_tokenizer
from tests.hostile import cases, write_hostile


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "shards").mkdir()
    mark = folder / "code-ran"
    return folder, mark, *write_hostile(folder / "shards", mark)


def files_of(folder: Path, mark: Path) -> set[Path]:
    """All files in a folder, and those where the cases' files would lie if they were extracted there."""
    named = (folder / f"{case.name}.{kind}" for case in cases(mark) for kind in case.files)
    return {path for path in (*folder.rglob("*"), *named) if path.is_file()}


def test_there_are_enough_cases(corpus):
    assert len(cases(corpus[1])) >= 40


@pytest.mark.parametrize("workers", [0, 2])
def test_every_bad_sample_is_counted_and_every_good_one_used(corpus, workers, monkeypatch):
    folder, mark, shards, causes, used = corpus
    monkeypatch.chdir(folder)
    before = files_of(folder, mark)
    config = DataConfig(
        shards=shards,
        resolution=ResolutionConfig(min_side=32, max_side=64),
        tokens_per_batch=64,
        lookahead=1,
        blocks_per_shard=2,
        num_workers=workers,
    )
    loader = TrainLoader(config, small_tokenizer(), 16, 16, seed=0)
    seen = Counter()
    for batch in loader:
        seen.update(batch.keys)
        if loader.epoch >= 3:
            break
    assert set(seen) == used
    skipped = loader.counts["skipped"]
    assert set(skipped) == set(causes)
    for cause, number in causes.items():
        # Two epochs are behind every worker, and none is past its fourth.
        assert 2 * number <= skipped[cause] <= 4 * number, cause
    assert not mark.exists(), "code in a shard ran"
    assert files_of(folder, mark) == before


def test_validation_names_each_of_them_once(corpus, capsys, caplog):
    _, mark, shards, causes, _ = corpus
    with caplog.at_level(logging.ERROR):
        assert main(["shards", "validate", *shards]) == 1
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert Counter(line.split(": ")[1] for line in lines) == causes
    assert not mark.exists()
