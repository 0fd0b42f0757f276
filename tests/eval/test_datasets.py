from __future__ import annotations

import pickle

import pytest

from eval.datasets import open_captioned, open_classified
from navit_clip.errors import ConfigError, DataError, SampleError
from tests.data_builders import write_tar
from tests.eval_builders import picture, write_labelled


@pytest.fixture
def wds(tmp_path):
    """A CLIP_benchmark folder of two shards and three classes."""
    (tmp_path / "wds" / "test").mkdir(parents=True)
    write_labelled(tmp_path / "wds" / "test" / "0.tar", [0, 1, 2])
    write_labelled(tmp_path / "wds" / "test" / "1.tar", [2, 1])
    (tmp_path / "wds" / "test" / "nshards.txt").write_text("2\n")
    (tmp_path / "wds" / "classnames.txt").write_text("cat\ndog\ngas pump\n")
    (tmp_path / "wds" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return tmp_path / "wds"


def labels(samples):
    return [samples[index].label for index in range(len(samples))]


def test_clip_benchmark_folder(wds):
    data = open_classified(str(wds), "test", "cls")
    assert data.space.classes == ("cat", "dog", "gas pump")
    assert data.templates == ("a photo of a {c}.",)
    assert data.samples.keys[3] == "1/sample000"
    assert labels(data.samples) == [0, 1, 2, 2, 1]
    captions = open_captioned(str(wds), "test", "txt").samples[4].captions
    assert captions == ("a picture called 1", "the 1th of them")


def test_samples_survive_the_way_into_a_worker(wds):
    samples = open_classified(str(wds), "test", "cls").samples
    assert labels(pickle.loads(pickle.dumps(samples))) == labels(samples)


def test_another_split_and_a_missing_shard(wds):
    with pytest.raises(DataError, match="no such split; it has test"):
        open_classified(str(wds), "val", "cls")
    (wds / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1\.tar"):
        open_classified(str(wds), "test", "cls")
    for content in (b"two", b"\xff"):
        (wds / "test" / "nshards.txt").write_bytes(content)
        with pytest.raises(DataError, match="expected the number of shards, found"):
            open_classified(str(wds), "test", "cls")


def test_a_template_of_the_data_set_without_a_place_is_refused(wds):
    (wds / "zeroshot_classification_templates.txt").write_text("a {c}\na photo\n")
    with pytest.raises(ConfigError, match=r"templates\.txt: 'a photo' has no \{\} for the class name"):
        open_classified(str(wds), "test", "cls")


def test_labels_outside_the_class_names(wds):
    (wds / "classnames.txt").unlink()
    samples = open_classified(str(wds), "test", "cls", ["cat", "dog"]).samples
    with pytest.raises(DataError, match=r"0/sample002: label 2 is outside the 2 class names \(0 to 1\)"):
        labels(samples)


def test_class_names_that_cannot_be_the_folder_s(wds):
    own = r"wds/classnames\.txt"
    with pytest.raises(ConfigError, match=rf"class_names: expected 3, as many as .*{own}, found 4"):
        open_classified(str(wds), "test", "cls", ["cat", "dog", "gas pump", "tench"])
    with pytest.raises(ConfigError, match=rf"names of .*{own} in another order; expected 'cat' as number 1"):
        open_classified(str(wds), "test", "cls", ["dog", "cat", "gas pump"])
    given = open_classified(str(wds), "test", "cls", ["kitten", "dog", "petrol pump"])
    assert given.space.classes == ("kitten", "dog", "petrol pump")


def test_shards_with_numbers_need_class_names(tmp_path):
    shard = write_labelled(tmp_path / "images.tar", [0, 1])
    with pytest.raises(ConfigError, match=r"class_names: .* has no classnames\.txt"):
        open_classified(shard, "test", "cls")
    assert labels(open_classified(shard, "test", "cls", ["a", "b"]).samples) == [0, 1]


def test_classes_named_by_the_samples(tmp_path):
    shard = write_labelled(tmp_path / "images.tar", [7, 3, 7])
    data = open_classified(shard, "test", "json.kind")
    assert data.space.classes == ("class 3", "class 7")
    assert labels(data.samples) == [1, 0, 1]
    given = open_classified(shard, "test", "json.kind", ["class 9", "class 7", "class 3"])
    assert labels(given.samples) == [1, 2, 1]


def test_a_sample_without_its_class_is_counted_as_unlabelled(tmp_path):
    members = [
        ("a.png", picture(0)),
        ("a.json", b'{"kind": "cat"}'),
        ("b.png", picture(1)),
        ("b.json", b"{}"),
    ]
    write_tar(tmp_path / "images.tar", members)
    data = open_classified(str(tmp_path / "images.tar"), "test", "json.kind")
    assert data.space.classes == ("cat",)
    with pytest.raises(SampleError, match=r"no label: images/b: the \.json has no key 'kind'"):
        data.samples[1]


def test_class_names_that_the_samples_contradict(tmp_path):
    shard = write_labelled(tmp_path / "images.tar", [7, 3])
    named = open_classified(shard, "test", "json.kind", ["class 3", "class 8"])
    with pytest.raises(DataError, match=r"'class 7' is not among the class names; did you mean class"):
        labels(named.samples)
    with pytest.raises(DataError, match=r"no sample says what its class is; 2 skipped"):
        open_classified(shard, "test", "json.category")


def test_folder_of_class_folders(tmp_path):
    for name, count in (("car_side", 2), ("anchor", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.PNG").write_bytes(picture(number))
    (tmp_path / "anchor" / "notes.txt").touch()
    data = open_classified(str(tmp_path), "test", "cls")
    assert data.space.classes == ("anchor", "car side")
    assert data.samples.keys == ["anchor/0.PNG", "car_side/0.PNG", "car_side/1.PNG"]
    assert labels(data.samples) == [0, 1, 1]
    with pytest.raises(
        ConfigError, match=r"class_names: expected 2, as many as the class folders of .*, found 3"
    ):
        open_classified(str(tmp_path), "test", "cls", ["a", "b", "c"])
    with pytest.raises(ConfigError, match="another order; expected 'anchor' as number 1, found 'Car side'"):
        open_classified(str(tmp_path), "test", "cls", ["Car side", "Anchor"])
    (tmp_path / "anchor" / "0.PNG").unlink()
    with pytest.raises(SampleError, match="unreadable file"):
        data.samples[0]


def test_class_folders_that_are_numbers_are_ordered_as_numbers(tmp_path):
    for number in range(11):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "image.png").write_bytes(picture(number))
    data = open_classified(str(tmp_path), "test", "cls")
    assert data.space.classes[9:] == ("9", "10")
    assert data.samples[10].image == picture(10)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no shard matches"):
        open_captioned(str(tmp_path / "absent.tar"), "test", "txt")
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(SampleError, match="empty shard"):
        open_captioned(str(tmp_path / "empty.tar"), "test", "txt").samples[0]
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: expected class folders, shards, or .*test/nshards\.txt"):
        open_classified(str(tmp_path / "empty"), "test", "cls")
    with pytest.raises(DataError, match="no shard matches"):
        open_classified(str(tmp_path / "absent.tar"), "test", "cls")
    with pytest.raises(DataError, match="no image in its 1 class folders"):
        open_classified(str(tmp_path / "classes"), "test", "cls")
