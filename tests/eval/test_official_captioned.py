from __future__ import annotations

import json

import pytest

from eval.official_captioned import open_official
from navit_clip.errors import DataError
from tests.eval_builders import picture

KARPATHY = {
    "images": [
        {
            "filepath": "val2014",
            "filename": f"{number}.jpg",
            "split": split,
            "sentences": [{"raw": f"picture {number} "}, {"raw": "something"}],
        }
        for number, split in enumerate(["test", "train", "test", "restval"])
    ]
}


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "dataset_coco.json").write_text(json.dumps(KARPATHY))
    (tmp_path / "val2014").mkdir()
    for number in (0, 1, 2):
        (tmp_path / "val2014" / f"{number}.jpg").write_bytes(picture(number))
    return tmp_path


def test_karpathy_s_test_split(coco):
    data = open_official("mscoco", coco, incomplete=True)
    assert data.samples.keys == ["val2014/0.jpg", "val2014/2.jpg"]
    assert data.samples[1].captions == ("picture 2", "something")
    assert data.samples[1].image == picture(2)
    assert data.missing.startswith("mscoco is not whole: 2 of 5,000 images and 4 of 25,010 captions")


def test_what_is_not_whole_is_refused(coco):
    with pytest.raises(DataError, match="2 of 5,000 images"):
        open_official("mscoco", coco, incomplete=False)
    (coco / "val2014" / "0.jpg").unlink()
    assert len(open_official("mscoco", coco, incomplete=True).samples) == 1
    (coco / "val2014" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"mscoco: no image such as val2014/0\.jpg in"):
        open_official("mscoco", coco, incomplete=True)


def test_captions_that_are_absent_or_of_another_form(coco, tmp_path):
    with pytest.raises(DataError, match=r"flickr30k: no captions: there is no .*dataset_flickr30k\.json"):
        open_official("flickr30k", tmp_path, incomplete=True)
    for content in ("[]", "{", '{"images": [{"filename": "a.jpg"}]}', '{"images": 3}'):
        (coco / "dataset_coco.json").write_text(content)
        with pytest.raises(DataError, match="expected Karpathy's list of images"):
            open_official("mscoco", coco, incomplete=True)


def test_flickr8k_s_own_files(tmp_path):
    (tmp_path / "Flickr8k.token.txt").write_text("b.jpg#0\tA dog .\nb.jpg#1\tA cat .\na.jpg#0\tA hen .\n")
    (tmp_path / "Flicker8k_Dataset").mkdir()
    (tmp_path / "Flicker8k_Dataset" / "b.jpg").write_bytes(picture(0))
    with pytest.raises(DataError, match=r"no list of the test images: .*Flickr_8k\.testImages\.txt"):
        open_official("flickr8k", tmp_path, incomplete=True)
    (tmp_path / "Flickr_8k.testImages.txt").write_text("b.jpg\n")
    data = open_official("flickr8k", tmp_path, incomplete=True)
    assert data.samples[0].captions == ("A dog .", "A cat .")


@pytest.mark.real_data
def test_flickr8k_s_official_files(real_data, tmp_path):
    """The split has a thousand images of five captions; two of them are enough to be looked up."""
    for name in ("Flickr8k.token.txt", "Flickr_8k.testImages.txt"):
        (tmp_path / name).symlink_to(real_data / "mappings" / "captions" / name)
    names = (tmp_path / "Flickr_8k.testImages.txt").read_text().split()
    (tmp_path / "Images").mkdir()
    for name in names:
        (tmp_path / "Images" / name).write_bytes(picture(0))
    data = open_official("flickr8k", tmp_path, incomplete=False)
    assert (len(data.samples), data.missing) == (1000, "")
    assert all(len(data.samples[index].captions) == 5 for index in (0, 999))
