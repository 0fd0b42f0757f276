"""Shards from elsewhere arrive whole, whatever the network does, or the error says what did not."""

import fcntl
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import fsspec
import pytest
from huggingface_hub import constants

from navit_clip.data import remote
from navit_clip.data.config import DataConfig
from navit_clip.data.dropping import DropConfig
from navit_clip.data.loader import TrainLoader
from navit_clip.data.remote import RemoteConfig, cache_name, open_remote
from navit_clip.data.resolution import ResolutionConfig
from navit_clip.data.samples import read_samples
from navit_clip.data.shards import find_shards
from navit_clip.data.tar_index import OpenShards
from navit_clip.errors import ConfigError, DataError
from tests.data_builders import draws_of, small_tokenizer, write_pairs
from tests.servers import FAULTS, GCS_BUCKET, HUB_DATASET, gcs_server, http_server, hub_server, s3_server

SIZES = [5, 1, 6]
KEYS = {f"shard-{shard:03d}/sample{number:05d}" for number, shard in enumerate([0] * 5 + [1] + [2] * 6)}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A shard comes in several pieces, each of which may fail."""
    monkeypatch.setattr(remote, "_PIECE", 20_000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "there").mkdir()
    write_pairs(tmp_path / "there", SIZES)
    return tmp_path / "there"


def config(tmp_path, **changes):
    return RemoteConfig(**{"cache": str(tmp_path / "cache"), "wait": 0.01, "timeout": 0.3, **changes})


def fetched(url, settings):
    with open_remote(url, settings) as file:
        return file.read()


def loader(patterns, settings, rank=0, world_size=1):
    data = DataConfig(
        shards=patterns,
        resolution=ResolutionConfig(min_side=100, max_side=200),
        drop=DropConfig(rate=0.5),  # so that no two draws are alike
        tokens_per_batch=256,
        blocks_per_shard=2,
        lookahead=1,
        num_workers=world_size - 1,  # a single rank reads by itself, in order
        remote=settings,
    )
    return TrainLoader(data, small_tokenizer(), 16, 16, seed=0, rank=rank, world_size=world_size)


def check_exactly_once(folder, patterns, settings):
    """On two ranks, each good sample comes once in each of three epochs, drawn as from this disk."""
    epochs, times = {}, Counter()
    for batch in islice(loader([str(folder)], RemoteConfig()), 16):
        for draw in draws_of(batch):
            epochs[draw] = times[draw[0]]
            times[draw[0]] += 1
    seen = Counter()
    for rank in range(2):
        batches = loader(patterns, settings, rank, 2)
        for batch in batches:
            seen.update(draws_of(batch))
            if batches.epoch >= 4:
                break
        assert not batches.counts["skipped"]
    assert set(seen.values()) == {1}, "no draw comes twice"
    for epoch in range(3):
        assert Counter(key for key, digest in seen if epochs.get((key, digest)) == epoch) == Counter(KEYS)


@pytest.mark.parametrize("fault", [*FAULTS, "all"])
def test_over_a_bad_connection_every_sample_comes_once_an_epoch(tmp_path, folder, fault):
    faults = [None, *FAULTS] if fault == "all" else [None, None, fault]
    with http_server(folder, faults) as url:
        check_exactly_once(folder, [f"{url}/shard-{{000..002}}.tar"], config(tmp_path))
    cached = sorted((tmp_path / "cache").glob("*.tar"))
    assert sorted(path.read_bytes() for path in cached) == sorted(
        path.read_bytes() for path in folder.iterdir()
    )


@pytest.mark.parametrize("faults", [(None,), (None, "503", "cut")])
def test_from_s3_every_sample_comes_once_an_epoch(tmp_path, folder, faults, monkeypatch):
    with s3_server("data", folder, faults) as options:
        monkeypatch.setitem(fsspec.config.conf, "s3", options)
        settings = config(tmp_path, timeout=20.0)
        shards = find_shards(["s3://data/*.tar"], settings)
        assert [shard.path for shard in shards] == [f"s3://data/shard-00{n}.tar" for n in range(3)]
        check_exactly_once(folder, ["s3://data/"], settings)
        with pytest.raises(DataError, match=r"shard s3://data/none.tar is not there, or not for us"):
            open_remote("s3://data/none.tar", settings)


@contextmanager
def gcs(folder, faults, monkeypatch):
    """Google Cloud Storage that gs:// reaches."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks over gRPC what kind a bucket is
    with gcs_server(folder, faults) as url:
        options = {"endpoint_url": url, "token": "anon", "skip_instance_cache": True}
        monkeypatch.setitem(fsspec.config.conf, "gs", options)
        yield


def test_from_gcs_every_sample_comes_once_an_epoch(tmp_path, folder, monkeypatch):
    # Some that gcsfs answers with its own retries, which take a second each, and some that are left to ours.
    with gcs(folder, [*[None] * 5, "drop", "stall", "short", "cut"], monkeypatch):
        settings = config(tmp_path)
        shards = find_shards([f"gs://{GCS_BUCKET}/*.tar"], settings)
        assert [shard.path for shard in shards] == [f"gs://{GCS_BUCKET}/shard-00{n}.tar" for n in range(3)]
        check_exactly_once(folder, [f"gs://{GCS_BUCKET}/"], settings)
        with pytest.raises(DataError, match=r"shard gs://data/none.tar is not there, or not for us"):
            open_remote(f"gs://{GCS_BUCKET}/none.tar", settings)


@pytest.mark.parametrize("answer", ["401", "403", "404"])
def test_what_gcs_does_not_give_out_is_an_error_at_once(tmp_path, folder, answer, monkeypatch, caplog):
    url = f"gs://{GCS_BUCKET}/shard-000.tar"
    refused = rf"^shard {url} is not there, or not for us: .*$"
    with gcs(folder, [answer], monkeypatch), pytest.raises(DataError, match=refused) as caught:
        open_remote(url, config(tmp_path, wait=60.0))
    assert "\n" not in str(caught.value)
    assert not caplog.records, "all is in the error"


@pytest.fixture
def hub(folder, monkeypatch):
    with hub_server(folder, [*[None] * 5, "cut"]) as url:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        options = {"endpoint": url, "token": False, "skip_instance_cache": True}
        monkeypatch.setitem(fsspec.config.conf, "hf", options)
        yield f"hf://datasets/{HUB_DATASET}"


def test_from_a_hub_every_sample_comes_once_an_epoch(tmp_path, folder, hub):
    settings = config(tmp_path, timeout=20.0)
    assert [shard.name for shard in find_shards([f"{hub}/*.tar"], settings)] == [
        f"shard-00{n}" for n in range(3)
    ]
    check_exactly_once(folder, [f"{hub}/"], settings)
    with pytest.raises(DataError, match=r"shard hf://.*/none.tar is not there, or not for us"):
        open_remote(f"{hub}/none.tar", settings)


def test_a_server_without_ranges_or_sizes_is_taken_at_its_word(tmp_path, folder):
    with http_server(folder, [None, "cut"], ranges=False) as url:
        data = fetched(f"{url}/shard-002.tar", config(tmp_path))
    assert data == (folder / "shard-002.tar").read_bytes()


@pytest.mark.parametrize("answer", ["401", "403", "404", "410"])
def test_what_is_gone_for_good_is_an_error_at_once(tmp_path, folder, answer):
    with (
        http_server(folder, [answer]) as url,
        pytest.raises(DataError, match=r"shard http.*\.tar is not there"),
    ):
        open_remote(f"{url}/shard-000.tar", config(tmp_path, wait=60.0))


def test_waits_between_attempts_double_up_to_a_minute(tmp_path, folder, monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    with http_server(folder, ["drop"]) as url, pytest.raises(DataError, match=r"7 attempts in a row failed"):
        open_remote(f"{url}/shard-000.tar", config(tmp_path, retries=6, wait=3.0))
    assert waits == [3, 6, 12, 24, 48, 60]


@pytest.mark.parametrize(
    ("fault", "said"), [("drop", "Server disconnected"), ("503", "503"), ("stall", "Timeout")]
)
def test_what_never_comes_is_an_error_after_the_retries(tmp_path, folder, fault, said):
    failed = rf"3 attempts in a row failed, the last with .*{said}"
    with http_server(folder, [fault]) as url, pytest.raises(DataError, match=failed):
        open_remote(f"{url}/shard-000.tar", config(tmp_path, retries=2))


def test_a_fetch_goes_on_where_an_earlier_one_was_given_up(tmp_path, folder):
    whole = (folder / "shard-002.tar").read_bytes()
    with http_server(folder, [None, None, *["503"] * 10]) as url:  # the size, one piece, and then no more
        with pytest.raises(DataError):
            open_remote(f"{url}/shard-002.tar", config(tmp_path, retries=1))
        (partial,) = (tmp_path / "cache").glob("*.partial")
        assert 0 < partial.stat().st_size < len(whole)
    got = partial.read_bytes()
    # The port differs, and so would the name in the cache.
    with http_server(folder) as again:
        for path in (partial, partial.with_suffix(".version")):
            path.rename(path.with_name(cache_name(f"{again}/shard-002.tar") + path.suffix))
        # What was fetched is not fetched again, so a change to it stays.
        partial.with_name(f"{cache_name(f'{again}/shard-002.tar')}.partial").write_bytes(bytes(len(got)))
        assert fetched(f"{again}/shard-002.tar", config(tmp_path)) == bytes(len(got)) + whole[len(got) :]
    assert not list((tmp_path / "cache").glob("*.version"))


def test_a_shard_that_changes_while_it_is_half_fetched_is_fetched_anew(tmp_path, folder):
    path = folder / "shard-002.tar"
    changed = path.read_bytes()[::-1]  # of the same size
    faults: list[str | None] = [None, None, "503", "503"]
    with http_server(folder, [*faults, *[None] * 100]) as url:
        with pytest.raises(DataError):
            open_remote(f"{url}/shard-002.tar", config(tmp_path, retries=1))
        path.write_bytes(changed)
        assert fetched(f"{url}/shard-002.tar", config(tmp_path)) == changed


@pytest.mark.parametrize("place", ["http", "hub"])
def test_a_shard_that_changes_between_two_of_its_pieces_is_fetched_anew(
    tmp_path, folder, monkeypatch, hub, place
):
    path = folder / "shard-002.tar"
    changed = path.read_bytes()[::-1]  # of the same size
    piece, pieces = remote._piece, []

    def change_after_the_first(*arguments):
        pieces.append(piece(*arguments))
        if len(pieces) == 1:
            path.write_bytes(changed)
        return pieces[-1]

    monkeypatch.setattr(remote, "_piece", change_after_the_first)
    with http_server(folder) as url:
        source = hub if place == "hub" else url
        assert fetched(f"{source}/shard-002.tar", config(tmp_path)) == changed
    assert len(pieces) > 2


def test_a_shard_in_the_cache_is_what_its_url_names_until_it_is_taken_out(tmp_path, folder):
    path, settings = folder / "shard-000.tar", config(tmp_path)
    before = path.read_bytes()
    with http_server(folder) as url:
        assert fetched(f"{url}/shard-000.tar", settings) == before
        path.write_bytes(b"another")
        assert fetched(f"{url}/shard-000.tar", settings) == before
        for cached in (tmp_path / "cache").iterdir():
            cached.unlink()
        assert fetched(f"{url}/shard-000.tar", settings) == b"another"


def test_the_cache_keeps_to_its_limit_and_open_shards_stay_readable(tmp_path, folder):
    size = (folder / "shard-002.tar").stat().st_size
    settings = config(tmp_path, cache_gigabytes=1.5 * size / 1e9)
    with http_server(folder) as url:
        first = open_remote(f"{url}/shard-002.tar", settings)
        for name in ("shard-000.tar", "shard-001.tar", "shard-000.tar"):
            fetched(f"{url}/{name}", settings)
            assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 1.5 * size
    with first:
        assert first.read() == (folder / "shard-002.tar").read_bytes()


def test_what_was_left_half_fetched_makes_room_too(tmp_path, folder):
    settings = config(tmp_path, cache_gigabytes=1e-6)
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("aa", "bb"):
        (cache / f"{name}.partial").write_bytes(bytes(2000))
    with (cache / "bb.lock").open("w") as lock, http_server(folder) as url:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process fetches it
        fetched(f"{url}/shard-000.tar", settings)
    assert [path.name for path in cache.glob("*.partial")] == ["bb.partial"]
    assert len(list(cache.glob("*.tar"))) == 1, "the one that was asked for"


def test_many_readers_of_a_cache_for_one_shard_get_every_shard(tmp_path, folder):
    """What one has fetched another may take out at once, and still the first reads it."""
    settings = config(tmp_path, cache_gigabytes=0.0, timeout=20.0)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    with http_server(folder) as url, ThreadPoolExecutor(4) as pool:
        names = sorted(whole) * 12
        for name, data in zip(names, pool.map(lambda n: fetched(f"{url}/{n}", settings), names), strict=True):
            assert data == whole[name]
    assert len(list((tmp_path / "cache").glob("*.tar"))) <= 1


def test_the_next_shard_is_fetched_while_one_is_read(tmp_path, folder):
    settings, cache = config(tmp_path), tmp_path / "cache"
    with http_server(folder) as url:
        shards = find_shards([f"{url}/shard-{{000..002}}.tar"], settings)
        opened = OpenShards(shards)
        assert len(opened[0]) == 5
        opened.prepare(2)
        opened.prepare(2)
        deadline = time.monotonic() + 30
        while not (cache / f"{cache_name(shards[2].path)}.tar").exists():
            assert time.monotonic() < deadline, "it was not fetched"
            time.sleep(0.01)
    assert len(opened[2]) == 6, "with the server gone"


def test_what_cannot_be_fetched_ahead_is_an_error_when_it_is_asked_for(tmp_path, folder):
    with http_server(folder) as url:
        opened = OpenShards(find_shards([f"{url}/shard-000.tar", f"{url}/none.tar"], config(tmp_path)))
        opened.prepare(1)
        assert len(opened[0]) == 5
        with pytest.raises(DataError, match=r"none\.tar is not there"):
            opened[1]


def test_a_shard_is_fetched_once(tmp_path, folder):
    with http_server(folder) as url:
        first = fetched(f"{url}/shard-000.tar", config(tmp_path))
        (folder / "shard-000.tar").unlink()
        assert fetched(f"{url}/shard-000.tar", config(tmp_path)) == first


def test_commands_run_only_where_the_config_names_them(tmp_path, folder):
    pattern = f"pipe:cat {folder}/shard-{{000..002}}.tar"
    with pytest.raises(DataError, match=r"remote.pipe_commands allows none"):
        find_shards([pattern], config(tmp_path))
    with pytest.raises(DataError, match=r"allows curl, /bin/cat"):
        find_shards([pattern], config(tmp_path, pipe_commands=["curl", "/bin/cat"]))
    settings = config(tmp_path, pipe_commands=["cat"])
    assert {sample.key for sample in read_samples([pattern], remote=settings)} == KEYS


def test_a_command_is_no_shell(tmp_path):
    settings = config(tmp_path, pipe_commands=["echo"])
    for words in ("a; touch {}/made", "$(touch {}/made)", "a > {}/made", "a | touch {}/made"):
        open_remote("pipe:echo " + words.format(tmp_path), settings).close()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; print('half of it'); sys.exit('no such bucket')", "exit code 1: no such bucket"),
        ("import time; time.sleep(60)", "no byte came for"),
    ],
)
def test_a_command_that_fails_or_hangs_is_an_error(tmp_path, program, said):
    settings = config(tmp_path, pipe_commands=[sys.executable], retries=1)
    with pytest.raises(DataError, match=rf"2 attempts in a row failed, the last with OSError: {said}"):
        open_remote(f'pipe:{sys.executable} -c "{program}"', settings)
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_a_protocol_that_is_unknown_or_needs_a_package_says_so(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"Protocol not known"):
        open_remote("nowhere://a/b.tar", config(tmp_path))
    monkeypatch.setitem(remote._PACKAGES, "gs", "no_such_package")
    with pytest.raises(DataError, match=r"gs needs the package no_such_package: pip install"):
        find_shards(["gs://a/b.tar"], config(tmp_path))


def test_a_hub_that_cannot_be_reached_is_named(tmp_path):
    url = "hf://datasets/someone/something/a.tar"
    with pytest.raises(DataError, match=rf"shard {url} cannot be fetched: 2 attempts .* offline mode"):
        open_remote(url, config(tmp_path, retries=1))


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"remote.cache: .* cannot be used"):
        open_remote("memory://a.tar", config(tmp_path, cache=str(tmp_path / "file" / "cache")))


@pytest.mark.parametrize(
    ("field", "value"), [("cache_gigabytes", -1.0), ("retries", -1), ("wait", -1.0), ("timeout", 0.0)]
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        RemoteConfig(**{field: value})
