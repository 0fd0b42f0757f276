"""Every good sample comes once an epoch, drawn alike in all settings; a stream goes on byte for byte."""

import json
import math
import multiprocessing
import os
import signal
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice

import numpy as np
import psutil
import pytest
import torch

from navit_clip.batch import caption_identity, lengths_of
from navit_clip.config import build_config
from navit_clip.data import reading
from navit_clip.data.config import DataConfig, line_patience
from navit_clip.data.dealing import deal_again
from navit_clip.data.dropping import DropConfig, RateSchedule
from navit_clip.data.loader import TrainLoader
from navit_clip.data.resolution import ResolutionConfig, ResolutionStage
from navit_clip.data.samples import read_sample
from navit_clip.errors import CheckpointError, ConfigError, DataError
from tests.data_builders import (
    encode_image,
    noise_picture,
    pair,
    pairs_of,
    small_tokenizer,
    write_pairs,
    write_shard,
)

PATCH = 8
NUM_PAIRS = 33
SETTINGS = [(ranks, workers) for ranks in (1, 2, 3) for workers in (0, 1, 2, 5)]


def config(shards, **changes):
    settings = {
        "shards": list(shards),
        "templates": ["{}", "a photo of {}"],
        "resolution": ResolutionConfig(min_side=40, max_side=80),
        "drop": DropConfig(rate=0.25),
        "tokens_per_batch": 256,
        "lookahead": 3,
        "blocks_per_shard": 3,
        "shuffle_window": 2,
        "num_workers": 0,
    }
    return DataConfig(**{**settings, **changes})


def loader(shards, rank=0, world_size=1, seed=0, **changes):
    return TrainLoader(config(shards, **changes), small_tokenizer(), PATCH, 16, seed, rank, world_size)


def bytes_of(batch):
    return [*pairs_of(batch), batch.captions.identity.tolist(), batch.images.offsets.tolist()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("shards"), [14, 1, 18])


SCHEDULED = {
    # Three epochs of 33: every kind of draw, and both schedules, move within what the tests read.
    "images_per_epoch": NUM_PAIRS,
    "resolution": ResolutionConfig(
        min_side=40, max_side=80, stages=[ResolutionStage(from_images=40, min_side=48, max_side=72)]
    ),
    "drop": DropConfig(
        kind="beta", schedule=RateSchedule(min_rate=0.5, midpoint_images=50, timescale_images=-20)
    ),
}
BY_LENGTH = {"drop": DropConfig(kind="by_length", short_rate=0.2, long_rate=0.6)}


@pytest.fixture(scope="module", params=[{}, SCHEDULED, BY_LENGTH], ids=["plain", "scheduled", "by length"])
def settings(request):
    return request.param


@pytest.fixture(scope="module")
def draws(shards, settings):
    """For each pair and its draw, the epoch that it belongs to, from one uninterrupted stream."""
    epochs, seen = {}, Counter()
    for batch in islice(loader(shards, **settings), 60):
        for key, drawn in pairs_of(batch):
            epochs[key, drawn] = seen[key]
            seen[key] += 1
    assert len(seen) == NUM_PAIRS
    assert min(seen.values()) >= 3
    return epochs


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # five workers on few cores
@pytest.mark.parametrize(("ranks", "workers"), SETTINGS)
def test_every_pair_once_an_epoch_with_the_same_draws(shards, draws, settings, ranks, workers):
    seen = Counter()
    for rank in range(ranks):
        batches = loader(shards, rank, ranks, num_workers=workers, **settings)
        for batch in batches:
            assert batch.images.num_tokens <= 256
            seen.update(pairs_of(batch))
            if batches.epoch >= 4 + ranks * workers:  # a worker of many holds epochs' worth of its few blocks
                break
    assert set(seen.values()) == {1}, "no draw comes twice"
    first = Counter(key for key, drawn in seen if draws.get((key, drawn)) == 0)
    second = Counter(key for key, drawn in seen if draws.get((key, drawn)) == 1)
    assert len(first) == len(second) == NUM_PAIRS
    assert set(first.values()) == set(second.values()) == {1}


def test_seeds_differ(shards):
    first, second = (next(iter(loader(shards, seed=seed))) for seed in (0, 1))
    assert bytes_of(first) != bytes_of(second)


def test_a_batch_holds_what_its_samples_say(shards):
    batch = next(iter(loader(shards, templates=["{}"], drop=DropConfig(rate=0.5))))
    grids, lengths = batch.images.grid.tolist(), lengths_of(batch.images.offsets)
    assert lengths == [max(1, round(rows * columns * 0.5)) for rows, columns in grids]
    assert lengths == sorted(lengths, reverse=True)
    numbers = [int(key.removeprefix("shard-").split("sample")[1]) for key in batch.keys]
    captions = [f"picture number {number}" for number in numbers]
    assert batch.captions.identity.tolist() == [caption_identity(caption) for caption in captions]
    assert [ids.tolist() for ids in batch.captions.ids.split(lengths_of(batch.captions.offsets))] == (
        small_tokenizer().encode(captions, 16)
    )


def test_identity_is_of_the_caption_and_not_of_its_template(tmp_path):
    write_shard(tmp_path / "s.tar", [pair(f"x{number}", number, "cat") for number in range(20)])
    batch = next(iter(loader([str(tmp_path)], templates=["a {}", "one {}", "{}"])))
    assert set(batch.captions.identity.tolist()) == {caption_identity("cat")}
    assert (
        len({tuple(ids.tolist()) for ids in batch.captions.ids.split(lengths_of(batch.captions.offsets))}) > 1
    )


@pytest.mark.parametrize(("workers", "stop"), [(0, 0), (0, 1), (0, 4), (0, 9), (1, 3), (2, 0), (2, 5)])
def test_a_stream_goes_on_byte_for_byte(shards, workers, stop):
    check_goes_on(shards, workers, stop)


GROUPED = {"resolution": ResolutionConfig(kind="patches", patches=[20, 60, 100], same_in_batch=True)}


@pytest.mark.parametrize(
    "changes", [{"exact_fill": True}, SCHEDULED, GROUPED], ids=["exact", "scheduled", "grouped"]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_so_does_one_with_every_knob(shards, workers, changes):
    check_goes_on(shards, workers, stop=5, **changes)


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        (GROUPED, 18),
        ({**GROUPED, "lookahead": 64}, 192),
        ({"resolution": replace(GROUPED["resolution"], patches=[16, 1024])}, 130),
        ({"resolution": replace(GROUPED["resolution"], patches=[16])}, math.inf),
        ({"resolution": replace(GROUPED["resolution"], same_in_batch=False)}, math.inf),
    ],
)
def test_a_line_gets_twice_the_batches_that_it_takes_to_fill(shards, changes, most):
    settings = config(shards, **changes)
    assert line_patience(settings) == most
    for batch in islice(loader(shards, **changes, tokens_per_batch=1024), 40):
        assert batch.longest_wait < most + (settings.lookahead + 1) * len(settings.resolution.patches)


def test_small_lookahead_fills_batches_of_lopsided_numbers(tmp_path):
    """The line of 16 needs 64 images of its own where that of 256 needs four."""
    resolution = ResolutionConfig(kind="patches", patches=[16, 256], same_in_batch=True, shape="square")
    shards = write_pairs(tmp_path, [40, 40])
    settings = {"resolution": resolution, "lookahead": 1, "tokens_per_batch": 1024, "drop": DropConfig()}
    fills = [batch.images.num_tokens / 1024 for batch in islice(loader(shards, **settings), 60)]
    assert np.mean(fills) > 0.97


def test_what_waits_is_dealt_longest_first_with_what_it_waited(shards):
    states = [loader(shards, rank, 2).state() for rank in range(2)]
    states[0]["workers"][0]["waiting"] = [[0, 0, 0, 1, 2], [0, 0, 0, 2, 7]]
    states[1]["workers"][0]["waiting"] = [[0, 1, 1, 1, 0], [0, 1, 1, 2, 5]]
    (alone,) = deal_again(states, 1, 0)
    assert [place[-1] for place in alone["workers"][0]["waiting"]] == [7, 5, 2, 0]
    two = deal_again(states, 1, 2)[0]["workers"]
    assert [[place[-1] for place in worker["waiting"]] for worker in two] == [[7, 2], [5, 0]]


def test_a_signal_to_all_processes_leaves_the_rank_its_batches(shards):
    expected = [bytes_of(batch) for batch in islice(loader(shards, num_workers=1), 6)]
    batches = iter(loader(shards, num_workers=1))
    found = [bytes_of(next(batches))]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    found += [bytes_of(batch) for batch in islice(batches, 5)]
    assert found == expected
    assert worker.is_alive()


def fail_in_the_middle(shards, pids):
    batches = iter(loader(shards, num_workers=2))
    next(batches)
    for worker in multiprocessing.active_children():
        pids.put(worker.pid)
    raise RuntimeError("a step has failed")


def test_a_rank_that_fails_ends_with_its_workers(shards):
    context = multiprocessing.get_context("forkserver")
    pids = context.SimpleQueue()
    rank = context.Process(target=fail_in_the_middle, args=(shards, pids))
    rank.start()
    workers = [pids.get() for _ in range(2)]
    rank.join(timeout=20)
    ended = rank.exitcode
    rank.kill()
    assert ended == 1
    assert not any(psutil.pid_exists(worker) for worker in workers)


def check_goes_on(shards, workers, stop, **changes):
    whole, stopped, resumed = (loader(shards, num_workers=workers, **changes) for _ in range(3))
    batches = list(islice(whole, stop + 8))
    for fetched in list(islice(stopped.fetch(), stop + 2))[:stop]:  # two were fetched ahead
        stopped.hand_out(fetched)
    resumed.load_state(json.loads(json.dumps(stopped.state())))
    assert resumed.counts == stopped.counts
    again = list(islice(resumed, 8))
    assert [bytes_of(batch) for batch in again] == [bytes_of(batch) for batch in batches[stop:]]
    assert [batch.longest_wait for batch in again] == [batch.longest_wait for batch in batches[stop:]]
    assert resumed.state() == whole.state()
    assert resumed.epoch == whole.epoch


def test_exact_filling_changes_the_patches_of_one_image_a_batch(shards, draws, settings):
    """Keys, captions, grids and all other images are what they are without it."""
    budget, cut_short = 256, 0
    known = {(key, drawn.split(b"|")[0]) for key, drawn in draws}
    for batch in islice(loader(shards, exact_fill=True, **settings), 12):
        assert batch.images.num_tokens == budget
        changed = [(key, drawn) for key, drawn in pairs_of(batch) if (key, drawn) not in draws]
        assert len(changed) <= 1
        for key, drawn in changed:
            grid = drawn.split(b"|")[0]
            assert (key, grid) in known
            cut_short += 1
    assert cut_short > 6


@pytest.mark.parametrize("ranks", [1, 3])
def test_images_seen_are_as_many_as_have_come(tmp_path, monkeypatch, ranks):
    """What schedules go by, beside a count: alike at the end of each epoch, never one apart in between."""
    planned = []
    rate = DropConfig.draw_rate
    monkeypatch.setattr(
        DropConfig, "draw_rate", lambda self, *draw: (planned.append(draw[1]), rate(self, *draw))[1]
    )
    shards, settings = write_pairs(tmp_path, [12, 12, 12]), {**SCHEDULED, "images_per_epoch": 36}
    batches = [iter(loader(shards, rank, ranks, **settings)) for rank in range(ranks)]
    while len(planned) < 300:
        for each in batches:
            next(each)
    for epoch in range(3):
        assert sum(36 * epoch <= images < 36 * (epoch + 1) for images in planned) == 36
    if ranks == 1:  # several go at paces of their own
        assert np.abs(np.array(planned) - np.arange(len(planned))).max() < 36


def test_a_schedule_moves_rates_and_sizes_with_the_epochs(shards):
    kept, grids = defaultdict(list), defaultdict(list)
    batches = loader(shards, **SCHEDULED, blocks_per_shard=1, shuffle_window=1)
    seen = Counter()
    for batch in islice(batches, 40):
        for key, length, grid in zip(
            batch.keys, lengths_of(batch.images.offsets), batch.images.grid.tolist(), strict=True
        ):
            epoch, seen[key] = seen[key], seen[key] + 1
            kept[epoch].append(length / np.prod(grid))
            grids[epoch].append(np.prod(grid))
    assert np.mean(kept[0]) < np.mean(kept[1]) < np.mean(kept[3])
    assert np.mean(kept[0]) == pytest.approx(1 - 0.75, abs=0.05)
    assert np.mean(kept[3]) == pytest.approx(1 - 0.51, abs=0.05)
    assert max(grids[3]) <= (72 / PATCH) ** 2 < max(grids[0])


@pytest.mark.parametrize(
    "changes", [{}, GROUPED, {**GROUPED, "exact_fill": True}], ids=["plain", "grouped", "exact"]
)
def test_what_an_image_waited_is_counted_in_batches_of_the_stream(shards, changes):
    """Also where numbers of patches have lines of their own."""
    batches, before, longest = loader(shards, **changes), {}, 0
    for batch in islice(batches, 30):
        waiting = {tuple(place): waited for *place, waited in batches.state()["workers"][0]["waiting"]}
        taken = before.keys() - waiting.keys()
        assert batch.longest_wait == max((before[place] for place in taken), default=0)
        assert all(waiting[place] == before[place] + 1 for place in before.keys() & waiting.keys())
        before, longest = waiting, max(longest, batch.longest_wait)
    assert longest > 3 if changes else 0 < longest <= 3


def test_a_batch_has_images_of_one_number_of_patches(shards):
    numbers = Counter()
    for batch in islice(loader(shards, **GROUPED, drop=DropConfig()), 20):
        patches = {rows * columns for rows, columns in batch.images.grid.tolist()}
        (number,) = {min(n for n in (20, 60, 100) if n >= most) for most in [max(patches)]}
        assert min(patches) > 0.5 * number
        numbers[number] += 1
    assert len(numbers) == 3


def test_caps_bind(shards):
    for batch in islice(loader(shards, max_images=2), 10):
        assert len(batch) <= 2
    for batch in islice(loader(shards, max_text_tokens=20), 10):
        assert batch.captions.num_tokens <= 20


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (3, 2000)])
@pytest.mark.parametrize("upscale", [True, False])
def test_extreme_shapes_go_into_batches(tmp_path, shape, upscale):
    picture = encode_image(noise_picture(*shape))
    write_shard(tmp_path / "s.tar", [{"__key__": f"x{n}", "png": picture, "txt": "a"} for n in range(9)])
    for longest in (0, 8):
        resolution = ResolutionConfig(min_side=64, max_side=80, upscale=upscale, max_grid_side=longest)
        batch = next(iter(loader([str(tmp_path)], resolution=resolution)))
        grid = batch.images.grid
        assert grid.min() == 1
        assert (grid.prod(dim=1) <= 100).all()
        assert grid.max() == 8 if longest else grid.max() > 60


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_from_twenty_random_places(shards, workers):
    whole, batches, states = loader(shards, num_workers=workers), [], []
    for batch in islice(whole, 40):
        batches.append(bytes_of(batch))
        states.append(json.dumps(whole.state()))
    stops = np.random.default_rng(workers).choice(39, 20, replace=False)
    for stop in sorted(stops.tolist()):
        resumed = loader(shards, num_workers=workers)
        resumed.load_state(json.loads(states[stop]))
        assert [bytes_of(batch) for batch in islice(resumed, 39 - stop)] == batches[stop + 1 :]


def test_going_on_reads_what_waits_and_what_comes_and_nothing_of_the_past(shards, monkeypatch):
    old = loader(shards)
    past = sum(len(batch) for batch in islice(old, 60))
    read, resumed = [], loader(shards)
    monkeypatch.setattr(
        reading, "read_sample", lambda *which, **how: read.append(which) or read_sample(*which, **how)
    )
    resumed.load_state(old.state())
    next(iter(resumed))
    assert 0 < len(read) < 60 < past / 4


def test_sources_are_counted_by_themselves_and_come_by_their_weights(tmp_path, shards):
    write_shard(tmp_path / "bad.tar", [{"__key__": f"x{n}", "jpg": b"bad", "txt": "a"} for n in range(6)])
    patterns = [shards[0], shards[2], str(tmp_path / "bad.tar")]
    batches = loader(patterns, weights=[1.0, 0.5, 1.0], lookahead=1)
    for _ in batches:
        if batches.epoch >= 12:
            break
    counts = batches.source_counts
    assert list(counts) == patterns
    assert counts[patterns[0]]["used"] == pytest.approx(12 * 14, abs=14)
    assert counts[patterns[1]]["used"] == pytest.approx(6 * 18, abs=18)
    assert counts[patterns[2]]["used"] == 0
    assert set(counts[patterns[2]]["skipped"]) == {"undecodable image"}
    assert batches.counts["used"] == counts[patterns[0]]["used"] + counts[patterns[1]]["used"]


def test_a_mixture_is_dealt_again_without_loss(shards):
    """Visits are numbered without gaps, so no draw of a sample is missed or comes twice."""
    weights = [1.0, 1.0, 1.5]
    reference = Counter()
    for batch in islice(loader(shards, weights=weights), 60):
        reference.update(pairs_of(batch))
    old = loader(shards, weights=weights)
    seen = Counter(pair for batch in islice(old, 7) for pair in pairs_of(batch))
    for rank, state in enumerate(deal_again([json.loads(json.dumps(old.state()))], 2, 0)):
        new = loader(shards, rank, 2, weights=weights)
        new.load_state(state)
        for batch in islice(new, 20):
            seen.update(pairs_of(batch))
    assert set(seen.values()) == {1}
    assert set(seen) <= set(reference)


@pytest.mark.parametrize("ranks", [1, 2])
def test_resampled_samples_come_by_chance_and_never_drawn_alike(shards, ranks):
    """Blocks come again before others come at all; and by their weights."""
    seen, keys = Counter(), Counter()
    for rank in range(ranks):
        batches = loader(shards, rank, ranks, resampled=True, weights=[1.0, 1.0, 3.0], lookahead=1)
        for batch in batches:
            seen.update(pairs_of(batch))
            keys.update(batch.keys)
            if batches.epoch >= 12:
                break
    assert set(seen.values()) == {1}
    assert max(keys.values()) > 2 * min(keys.values())
    of_last = sum(number for key, number in keys.items() if key.startswith("shard-002"))
    # Of 14, 1 and 18 samples, those of the last come thrice as often.
    assert of_last / keys.total() == pytest.approx(54 / 69, abs=0.1)


def test_a_total_of_faults_ends_it(tmp_path):
    bad = [{"__key__": f"x{n}", "jpg": b"bad", "txt": "a"} for n in range(3)]
    write_shard(tmp_path / "s.tar", [*bad, *(pair(f"good{n}", n) for n in range(10))])
    with pytest.raises(DataError, match=r"max_faults reached: 10 skipped: undecodable image: 10"):
        for _ in loader([str(tmp_path)], max_faults=10):
            pass


def test_a_total_of_faults_goes_on_with_a_resumed_run(tmp_path):
    """It is of the whole run, which ends where it would have ended without a stop."""
    bad = [{"__key__": f"x{n}", "jpg": b"bad", "txt": "a"} for n in range(3)]
    write_shard(tmp_path / "s.tar", [*bad, *(pair(f"good{n}", n) for n in range(10))])

    def keys_until_it_ends(batches):
        keys = []
        with pytest.raises(DataError, match=r"max_faults reached: 10 skipped: undecodable image: 10"):
            keys.extend(batch.keys for batch in batches)
        return keys

    old = loader([str(tmp_path)], max_faults=10)
    before = [batch.keys for batch in islice(old, 3)]
    assert old.counts["skipped"]["undecodable image"] > 1
    resumed = loader([str(tmp_path)], max_faults=10)
    resumed.load_state(old.state())
    whole = keys_until_it_ends(loader([str(tmp_path)], max_faults=10))
    assert len(whole) > 3
    assert before + keys_until_it_ends(resumed) == whole


def test_random_numbers_of_others_are_left_alone(shards):
    torch.manual_seed(0)
    expected = torch.rand(3).tolist()
    torch.manual_seed(0)
    next(iter(loader(shards, num_workers=1)))
    assert torch.rand(3).tolist() == expected


def test_iterating_again_goes_on(shards):
    whole, twice = loader(shards), loader(shards)
    expected = [bytes_of(batch) for batch in islice(whole, 6)]
    assert [bytes_of(batch) for _ in range(2) for batch in islice(twice, 3)] == expected


@pytest.mark.parametrize(
    ("old_ranks", "old_workers", "ranks", "workers"),
    [(2, 0, 1, 0), (2, 0, 3, 0), (1, 2, 3, 0), (2, 0, 2, 2), (1, 2, 1, 0)],
)
def test_dealt_again_nothing_is_lost_or_seen_twice(
    shards, draws, settings, old_ranks, old_workers, ranks, workers
):
    seen, states = Counter(), []
    for rank in range(old_ranks):
        # One rank is ahead of the other, as happens to packed batches of uneven size.
        old = loader(shards, rank, old_ranks, num_workers=old_workers, **settings)
        for batch in islice(old, 3 + rank):
            seen.update(pairs_of(batch))
        states.append(old.state())
    used = seen.total()
    dealt = deal_again(json.loads(json.dumps(states)), ranks, workers)
    totals = Counter()
    for rank in range(ranks):
        new = loader(shards, rank, ranks, num_workers=workers, **settings)
        new.load_state(dealt[rank])
        totals["used"] += new.counts["used"]
        for batch in new:
            seen.update(pairs_of(batch))
            if new.epoch >= 4:
                break
    assert totals["used"] == used
    assert set(seen.values()) == {1}
    epochs = Counter(draws[pair] for pair in seen if pair in draws)
    assert epochs[0] == epochs[1] == NUM_PAIRS


def test_a_state_must_fit(shards, tmp_path):
    state = loader(shards).state()
    with pytest.raises(CheckpointError, match="world_size 1, this run has 2"):
        loader(shards, 0, 2).load_state(state)
    with pytest.raises(CheckpointError, match=r"num_workers 1, this run has 2.*deal_again"):
        loader(shards, num_workers=2).load_state(state)
    with pytest.raises(CheckpointError, match="rank 0, this run has 1"):
        loader(shards, 1, 2).load_state(loader(shards, 0, 2).state())
    for other in (loader(shards[:2]), loader(shards, seed=1), loader(shards, blocks_per_shard=4)):
        with pytest.raises(
            CheckpointError,
            match=r"other shards, another seed or another data\.blocks_per_shard, data\.weights",
        ):
            other.load_state(state)
    with pytest.raises(CheckpointError, match=r"states of all ranks of one run, found those of \[0\]"):
        deal_again([loader(shards, 0, 2).state()], 1, 0)


def test_a_state_of_an_older_version_is_refused(shards):
    state = loader(shards).state()
    state = {name: value for name, value in state.items() if name != "version"}
    with pytest.raises(
        CheckpointError, match=r"has version 1, this code goes on from version 2: .*init_from"
    ):
        loader(shards).load_state(state)
    with pytest.raises(CheckpointError, match="has version 1"):
        deal_again([state], 2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_counted_and_skipped(tmp_path, workers):
    bad = [
        {"__key__": "corrupt", "jpg": encode_image(noise_picture(40, 40), "jpg")[:300], "txt": "a"},
        {"__key__": "not-an-image", "jpg": b"text", "txt": "a"},
        {"__key__": "empty-caption", "png": encode_image(noise_picture(9, 9)), "txt": "\n"},
        {"__key__": "no-caption", "png": encode_image(noise_picture(9, 9))},
        {"__key__": "no-image", "txt": "a"},
    ]
    good = [pair(f"good{number}", number) for number in range(15)]
    write_shard(tmp_path / "0.tar", good[:7] + bad + good[7:])
    write_shard(tmp_path / "1.tar", good)
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 2])
    batches = loader([str(tmp_path)], num_workers=workers)
    keys = Counter()
    for batch in batches:
        keys.update(batch.keys)
        if batches.epoch > 2.2:
            break
    assert {key for key in keys if key.startswith("0/")} == {f"0/good{number}" for number in range(15)}
    counts = batches.counts
    skipped = counts["skipped"]
    assert set(skipped) == {
        "undecodable image", "empty caption", "no caption", "no image", "truncated shard"
    }  # fmt: skip
    # Two epochs are behind us, and the third may have met some of them too.
    assert 4 <= skipped["undecodable image"] <= 6
    assert all(2 <= skipped[cause] <= 3 for cause in ("no image", "truncated shard"))
    assert counts["used"] == keys.total()
    waiting = sum(len(worker["waiting"]) for worker in batches.state()["workers"])
    assert counts["read"] == counts["used"] + waiting + sum(skipped.values())


def cut_off(key):
    """A sample whose image has a good header."""
    return {"__key__": key, "jpg": encode_image(noise_picture(40, 40), "jpg")[:-300], "txt": "a"}


@pytest.mark.parametrize("exact", [False, True])
def test_batches_are_full_without_the_images_that_turn_out_to_be_bad(tmp_path, exact):
    """Whether an image is bad is known when its batch has been chosen."""
    samples = [pair(f"good{n}", n) if n % 3 else cut_off(f"bad{n}") for n in range(60)]
    write_shard(tmp_path / "s.tar", samples)
    settings = {"exact_fill": exact, "lookahead": 8, "tokens_per_batch": 512, "max_consecutive_faults": 20}
    batches = loader([str(tmp_path)], **settings)
    keys, fills = Counter(), []
    for batch in batches:
        keys.update(batch.keys)
        fills.append(batch.images.num_tokens / 512)
        if batches.epoch >= 4:
            break
    assert set(keys) == {f"s/good{n}" for n in range(60) if n % 3}
    assert min(fills) == 1 if exact else np.mean(fills) > 0.97
    counts, waiting = batches.counts, len(batches.state()["workers"][0]["waiting"])
    assert counts["used"] == keys.total() == counts["read"] - waiting - counts["skipped"]["undecodable image"]
    check_goes_on([str(tmp_path)], workers=0, stop=5, **settings)


def test_bad_samples_between_good_ones_are_no_run_of_them(tmp_path):
    """Good images wait, and are decoded long after the bad ones round them were read."""
    samples = [pair(f"good{n}", n) if n % 10 == 0 else {"__key__": f"bad{n}", "txt": "a"} for n in range(200)]
    write_shard(tmp_path / "s.tar", samples)
    settings = {"lookahead": 64, "max_consecutive_faults": 120, "blocks_per_shard": 1}
    for batch in islice(loader([str(tmp_path)], **settings), 6):
        assert all("good" in key for key in batch.keys)


def test_good_images_end_a_run_of_bad_ones_in_batches_that_have_some_of_both(tmp_path):
    """Until a batch is whole, it is chosen again and again, and has images bad and good each time."""
    samples = [pair(f"good{n}", n) if n % 2 else cut_off(f"bad{n}") for n in range(60)]
    write_shard(tmp_path / "s.tar", samples)
    settings = {"tokens_per_batch": 1024, "lookahead": 8, "max_consecutive_faults": 9}
    batches = loader([str(tmp_path)], **settings)
    for _ in islice(batches, 6):
        pass
    assert batches.counts["skipped"]["undecodable image"] > 30


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 3])
def test_where_every_sample_is_bad_it_ends(tmp_path, workers, ranks):
    bad = [{"__key__": f"x{n}", "jpg": b"bad", "txt": "a"} for n in range(5)]
    write_shard(tmp_path / "s.tar", [*bad, *(cut_off(f"x{n}") for n in range(5, 10))])
    (tmp_path / "t.tar").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        next(iter(loader([str(tmp_path)], ranks - 1, ranks, num_workers=workers)))
    message = str(caught.value)
    assert message.startswith("every sample of the shards is bad;")
    assert "undecodable image: " in message
    assert "(first s/x" in message
    assert "unreadable shard: " in message
    assert "Traceback" not in message


def test_one_good_sample_among_bad_ones_is_enough(tmp_path):
    bad = [{"__key__": f"x{n}", "jpg": b"bad", "txt": "a"} for n in range(30)]
    write_shard(tmp_path / "s.tar", [*bad, pair("good", 0)])
    batches = loader([str(tmp_path)], resolution=ResolutionConfig(min_side=80, max_side=80))
    for batch in islice(batches, 3):
        assert set(batch.keys) == {"s/good"}


def test_a_run_of_faults_ends_it(tmp_path):
    bad = [{"__key__": f"x{n}", "jpg": b"bad", "txt": "a"} for n in range(30)]
    write_shard(tmp_path / "s.tar", [*bad, pair("good", 0)])
    with pytest.raises(DataError, match=r"10 bad samples in a row; 1\d+ skipped: undecodable image"):
        for _ in islice(loader([str(tmp_path)], max_consecutive_faults=10), 100):
            pass


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_without_a_good_block_of_its_own_still_goes_on(tmp_path, workers):
    """One pair, three ranks: each gets it in some epoch, and none hangs."""
    (shard,) = write_pairs(tmp_path, [1])
    for rank in range(3):
        batches = loader([shard], rank, 3, num_workers=workers, blocks_per_shard=2)
        assert [set(batch.keys) for batch in islice(batches, 2)] == [{"shard-000/sample00000"}] * 2


def test_a_shard_that_vanishes_is_an_error_in_the_main_process(tmp_path):
    shards = write_pairs(tmp_path, [3, 3])
    batches = loader(shards, num_workers=1)
    for path in shards:
        (tmp_path / path).unlink()
    with pytest.raises(DataError, match=r"^shard .* cannot be read: No such file"):
        next(iter(batches))


def test_batches_are_well_filled(tmp_path):
    shards = write_pairs(tmp_path, [120])
    batches = loader(shards, lookahead=32, tokens_per_batch=512, drop=DropConfig(), blocks_per_shard=8)
    fill = [batch.images.num_tokens / 512 for batch in islice(batches, 12)]
    assert np.mean(fill) > 0.98
    assert max(fill) <= 1


def test_schedules_need_the_size_of_the_data_set(shards):
    for name in ("resolution", "drop"):
        with pytest.raises(ConfigError, match=f"^images_per_epoch: {name}.* goes by images seen"):
            config(shards, **{name: SCHEDULED[name]})


def test_the_size_of_the_data_set_is_of_no_use_without_a_schedule(shards):
    with pytest.raises(
        ConfigError, match=r"^images_per_epoch: only drop\.schedule and resolution\.stages go by"
    ):
        config(shards, images_per_epoch=33)


def test_lengths_that_are_all_alike_are_an_error_where_rates_go_by_them(shards):
    fixed = ResolutionConfig(min_side=80, max_side=80)
    with pytest.raises(ConfigError, match=r"^data\.drop\.kind: by_length .* found all images of 100 patches"):
        loader(shards, resolution=fixed, **BY_LENGTH)


def test_a_cap_smaller_than_a_caption_is_an_error(shards):
    with pytest.raises(ConfigError, match=r"^data\.max_text_tokens: expected 0 or at least 16, .* found 15"):
        loader(shards, max_text_tokens=15)


def test_a_budget_smaller_than_an_image_is_an_error(shards):
    with pytest.raises(
        ConfigError,
        match=r"^data\.tokens_per_batch: expected at least 75, .* one image of 100 .* found 74",
    ):
        loader(shards, tokens_per_batch=74)
    loader(shards, tokens_per_batch=75)


def test_no_shard_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no shard matches"):
        loader([f"{tmp_path}/*.tar"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("caption_key", "caption"),
        ("templates", []),
        ("templates", ["no place"]),
        ("tokens_per_batch", 0),
        ("lookahead", 0),
        ("max_images", -1),
        ("max_text_tokens", -1),
        ("images_per_epoch", -1),
        ("blocks_per_shard", 0),
        ("shuffle_window", 0),
        ("max_consecutive_faults", 0),
        ("max_faults", -1),
        ("max_pixels", 0),
        ("max_bytes", 0),
        ("weights", [1.0, 2.0]),
        ("weights", [0.0]),
        ("other_captions", {"json.a": 0.0}),
        ("other_captions", {"txt": 1.0}),
        ("num_workers", -1),
        ("prefetch", 0),
    ],
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(ConfigError, match=field.removesuffix("s")):
        config(["x.tar"], **{field: value})


def test_the_config_is_built_from_plain_data():
    tree = {"shards": ["a.tar"], "resolution": {"max_side": 128}, "drop": {"rate": 0.5}}
    built = build_config(DataConfig, tree, where="here")
    assert built.resolution == ResolutionConfig(max_side=128)
    assert built.templates == ["{}"]
    with pytest.raises(ConfigError, match=r"unknown key resolution\.max_sid; did you mean max_side"):
        build_config(DataConfig, {"resolution": {"max_sid": 1}}, where="here")
