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
from navit_clip.shards.contact_sheet import ROW_HEIGHT, WIDTH, contact_sheet
from navit_clip.shards.histograms import histogram
from navit_clip.shards.inspection import inspect_shards
from tests.data_builders import (
    SIZES,
    encode_image,
    noise_picture,
    pair,
    solid_picture,
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
        "data: {shards: [elsewhere.tar], tokens_per_batch: 300, resolution: {min_side: 40, max_side: 40}}\n"
    )
    page = tmp_path / "page.html"
    command = ["shards", "inspect", *shards, "--caption-key", "txt", "--out", str(page)]
    assert main(command) == 0
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
    assert Image.open(io.BytesIO(base64.b64decode(png))).width == WIDTH
    assert main(["shards", "inspect", *shards, "--out", str(tmp_path / "none" / "x.html")]) == 2
    assert main([*command, "--most", "0"]) == 2


def test_a_histogram_counts_everything_once():
    svg = histogram([0.5, 1, 3, 100, 10_000], "images", "pixels & more", (1, 10, 100, 1000), logarithmic=True)
    assert sum(int(count) for count in re.findall(r"<title>(\d+)</title>", svg)) == 5
    assert "pixels &amp; more" in svg


def test_a_contact_sheet_keeps_shapes_and_leaves_out_what_is_bad():
    images = [encode_image(solid_picture(50, 100)), b"bad", encode_image(solid_picture(5, 500))]
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(images, num_rows=2))))
    covered = sheet[..., 3] > 0
    assert covered.shape == (ROW_HEIGHT, WIDTH)
    assert covered[:, : 2 * ROW_HEIGHT].all()
    assert covered.any(axis=0).sum() == 2 * ROW_HEIGHT + WIDTH // 3
    many = contact_sheet([encode_image(noise_picture(10, 10))] * 100, num_rows=3)
    assert Image.open(io.BytesIO(many)).height == 3 * ROW_HEIGHT + 2 * 6


def test_pair_pictures_have_the_sizes_that_are_tested():
    assert Image.open(io.BytesIO(pair("x", 1)["png"])).size == SIZES[1][::-1]
