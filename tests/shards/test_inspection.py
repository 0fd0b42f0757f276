"""The page counts what there is, and says what a config makes of it."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from navit_clip.cli import main
from navit_clip.data.shards import find_shards
from navit_clip.errors import DataError
from navit_clip.shards.histograms import histogram
from navit_clip.shards.inspection import SHEET_PICTURES, inspect_shards, pictures_shown
from tests.data_builders import (
    SIZES,
    pair,
    write_pairs,
    write_shard,
)


def test_finds_sizes_shapes_and_caption_lengths(tmp_path):
    write_pairs(tmp_path, [9, 5])
    write_shard(tmp_path / "z.tar", [{"__key__": "bad", "jpg": b"bad", "txt": "a"}])
    found = inspect_shards(find_shards([str(tmp_path)]), "txt", most=1000)
    assert (found.num_shards, found.num_samples) == (3, 15)
    assert list(zip(found.heights, found.widths, strict=True)) == [SIZES[n % len(SIZES)] for n in range(14)]
    assert found.captions == [1] * 14
    assert found.caption_words == [3] * 14
    assert found.faults.counts == {"undecodable image": 1}


@pytest.mark.parametrize("most", [1, 4, 7])
def test_of_many_samples_some_are_looked_at_evenly(tmp_path, most):
    shards = find_shards(write_pairs(tmp_path, [5, 1, 8]))
    found = inspect_shards(shards, None, most)
    stride = 14 // most
    assert list(zip(found.heights, found.widths, strict=True)) == [
        SIZES[number % len(SIZES)] for number in range(0, 14, stride)
    ]


def test_no_good_sample_is_an_error(tmp_path):
    write_shard(tmp_path / "z.tar", [{"__key__": "bad", "jpg": b"bad"}])
    with pytest.raises(DataError, match="no good sample; 1 skipped: undecodable image"):
        inspect_shards(find_shards([str(tmp_path)]), None, 10)


def test_the_page_is_whole_and_predicts(tmp_path, capsys):
    shards = write_pairs(tmp_path, [20])
    config = tmp_path / "run.yaml"
    config.write_text(
        "folder: runs/x\nmodel: {image: {patch_size: 8}}\n"
        "data: {shards: [elsewhere.tar, more.tar], weights: [1, 0.5], "
        "tokens_per_batch: 300, resolution: {min_side: 40, max_side: 40}}\n"
    )
    page = tmp_path / "page.html"
    command = ["shards", "inspect", *shards, "--out", str(page)]
    assert main([*command, "--caption-key", ""]) == 0
    assert page.read_text().count("<svg") == 2
    assert capsys.readouterr().out.endswith(f"\n{page}\n")
    assert main(command) == 0
    assert capsys.readouterr().out.endswith(f"\n{page}, in the place of what it was\n")
    assert "words a caption, median" in page.read_text()
    assert "with this config" not in page.read_text()
    assert main([*command, "--config", str(config), "--set", "data.drop.rate=0.2"]) == 0
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "<b>20</b><span>samples in 1 shard</span>" in text
    assert "images a batch of 300 tokens" in text
    assert text.count("<svg") == 4
    tokens = float(re.search(r"<b>(\d+)</b><span>tokens an image with this config", text)[1])
    assert 12 <= tokens <= 20  # at most 25 patches, of which a fifth is dropped
    (png,) = re.findall(r"data:image/png;base64,([^\"]+)", text)
    sheet = Image.open(io.BytesIO(base64.b64decode(png)))
    assert sheet.width > 6 * 192
    assert sheet.getpixel((0, 0))[3] == 0, "the page shows through, light or dark"
    assert main(["shards", "inspect", *shards, "--out", str(tmp_path / "none" / "x.html")]) == 2
    assert main([*command, "--most", "0"]) == 2
    assert main([*command, "--set", "data.drop.rate=0.2"]) == 2


def test_a_histogram_counts_everything_once():
    svg = histogram([0.5, 1, 3, 100, 10_000], "images", "pixels & more", (1, 10, 100, 1000), logarithmic=True)
    assert sum(int(count) for count in re.findall(r"<title>(\d+)</title>", svg)) == 5
    assert "pixels &amp; more" in svg


@pytest.mark.parametrize("number", [1, 35, 36, 37, 71, 72, 200])
def test_the_contact_sheet_is_of_pictures_evenly_spread(tmp_path, number):
    samples = [pair(f"x{n:03d}", n, "two\twords" if n else "") for n in range(number + 1)]
    write_shard(tmp_path / "s.tar", samples)
    found = inspect_shards(find_shards([str(tmp_path)]), "txt", most=1000)
    shown = pictures_shown(found)
    assert len(shown) == min(number, SHEET_PICTURES)
    assert {line for line, _ in shown} == {"two words"}
    images = [sample["png"] for sample in samples[1:]]
    places = [images.index(image) for _, image in shown]
    assert places == sorted(set(places))
    steps = np.diff([*places, number])
    assert places[0] == 0
    assert steps.max() <= 2 * steps[:-1].min(initial=number)


def test_pair_pictures_have_the_sizes_that_are_tested():
    assert Image.open(io.BytesIO(pair("x", 1)["png"])).size == SIZES[1][::-1]
