from __future__ import annotations

import pytest

from eval import objectnet
from eval.imagenet import class_names, subset, synsets
from eval.official_classified import OFFICIAL, OfficialLayout, check_variant, open_official
from eval.task_config import TaskConfig
from eval.tasks import open_classified_task
from navit_clip.errors import ConfigError, DataError
from tests.eval_builders import picture


def lay_out(folder, layout: OfficialLayout, images: int = 1, leave_out=()):
    """Class folders with the same few images each."""
    for name in layout.class_folders:
        if name not in leave_out:
            (folder / name).mkdir(parents=True)
            for number in range(images):
                (folder / name / f"{name}_{number}.JPEG").write_bytes(picture(number))
    return folder


@pytest.fixture(scope="module")
def imagenette(tmp_path_factory):
    """Ten class folders with an image each, in the archive's layout."""
    root = tmp_path_factory.mktemp("imagenette")
    lay_out(root / "imagenette2-320" / "val", OFFICIAL["imagenette"]())
    return root


def test_names_and_labels_follow_the_folders(imagenette):
    data = open_official("imagenette", imagenette, incomplete=True)
    assert data.space.classes[:3] == ("tench", "English Springer Spaniel", "cassette player")
    assert [data.samples[index].label for index in range(10)] == list(range(10))
    assert data.samples.keys[1] == "n02102040/n02102040_0.JPEG"
    assert len(data.templates) == 80
    assert data.missing == "imagenette is not whole: 10 of 3,925 images are there"


def test_what_is_not_whole_is_refused_before_the_run(imagenette):
    with pytest.raises(DataError, match=r"10 of 3,925 images are there; --incomplete .* judges"):
        open_official("imagenette", imagenette, incomplete=False)


def test_a_missing_class_keeps_the_labels_of_the_others(tmp_path):
    layout = OFFICIAL["imagenette"]()
    lay_out(tmp_path, layout, leave_out=layout.class_folders[2:4])
    with pytest.raises(DataError, match=r"missing 2 of the 10 class folders \(n02979186, n03000684\)"):
        open_official("imagenette", tmp_path, incomplete=False)
    data = open_official("imagenette", tmp_path, incomplete=True)
    assert [data.samples[index].label for index in range(8)] == [0, 1, 4, 5, 6, 7, 8, 9]


def test_an_extra_class_is_another_data_set(tmp_path):
    lay_out(tmp_path, OFFICIAL["imagenette"]())
    (tmp_path / "n01443537").mkdir()
    with pytest.raises(DataError, match=r"imagenette has no class n01443537; is this another data set"):
        open_official("imagenette", tmp_path, incomplete=True)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataError, match=r"imagenet-a: no class folder such as n01498041 in .*imagenet-a"):
        open_official("imagenet-a", tmp_path, incomplete=False)


def test_imagenet_v2_s_folders_are_numbers(tmp_path):
    folder = tmp_path / "imagenetv2-matched-frequency-format-val"
    lay_out(folder, OFFICIAL["imagenetv2-matched-frequency"]())
    data = open_official("imagenetv2-matched-frequency", tmp_path, incomplete=True)
    assert [int(key.partition("/")[0]) for key in data.samples.keys] == list(range(1000))
    assert [data.samples[index].label for index in (9, 10, 100)] == [9, 10, 100]


def test_a_variant_of_imagenet_v2_is_not_taken_for_another(tmp_path):
    """All three have the same class folders and counts: only the archive's folder says which it is."""
    top = tmp_path / "imagenetv2-top-images-format-val"
    lay_out(top, OFFICIAL["imagenetv2-top-images"]())
    (tmp_path / "top").symlink_to(top)
    for root in (tmp_path, top, tmp_path / "top"):
        assert len(open_official("imagenetv2-top-images", root, incomplete=True).samples) == 1000
    for root, found in ((top, top), (tmp_path / "top", tmp_path / "top")):
        with pytest.raises(
            DataError, match=rf"imagenetv2-threshold0\.7-format-val.*, found them in {found}$"
        ):
            open_official("imagenetv2-threshold0.7", root, incomplete=True)
    with pytest.raises(DataError, match=r"no class folder such as 0 in .*threshold0\.7-format-val"):
        open_official("imagenetv2-threshold0.7", tmp_path, incomplete=True)
    renamed = top.rename(tmp_path / "v2")
    with pytest.raises(DataError, match=r"only the folder's name tells it .* in imagenetv2-top-images-"):
        open_official("imagenetv2-top-images", renamed, incomplete=True)


def test_an_image_in_another_class_is_noticed_though_the_total_is_right(tmp_path):
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for label in range(1000):
        (root / str(label)).mkdir(parents=True)
        for number in range(10):
            (root / str(label) / f"{label}-{number}.jpeg").touch()
    assert not open_official("imagenetv2-matched-frequency", root, incomplete=False).missing
    (root / "7" / "7-0.jpeg").rename(root / "70" / "7-0.jpeg")
    with pytest.raises(DataError, match=r"2 classes do not have 10 images each: 7 \(9\), 70 \(11\)"):
        open_official("imagenetv2-matched-frequency", root, incomplete=False)


def test_subsets_are_scored_among_their_own_classes(tmp_path):
    data = open_official("imagenet-r", lay_out(tmp_path, OFFICIAL["imagenet-r"]()), incomplete=True)
    assert len(data.space.classes) == 200
    ids = subset("imagenet-r")
    assert data.samples.keys[7].startswith(synsets()[ids[7]])
    assert data.space.classes[7] == class_names()[ids[7]]


def test_real_labels_take_the_place_of_the_folder_s(tmp_path):
    lay_out(tmp_path, OFFICIAL["imagenet1k"](), images=0)
    files = {1: (), 2: (795, 970), 3: (230, 231)}  # ReaL has no label for the first
    for number in files:
        path = tmp_path / synsets()[0] / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.write_bytes(picture(number))
    data = open_official("imagenet1k-real", tmp_path, incomplete=True)
    assert len(data.samples) == 2
    assert [sorted(data.accepted[key]) for key in data.samples.keys] == [[795, 970], [230, 231]]
    assert "know no image" not in data.missing
    assert data.missing.endswith("; 2 of 46,837 labelled images are there")
    renamed = tmp_path / synsets()[0] / "of-another-name.JPEG"
    renamed.write_bytes(picture(4))
    data = open_official("imagenet1k-real", tmp_path, incomplete=True)
    assert len(data.samples) == 2
    assert f"the labels know no image that is called {synsets()[0]}/{renamed.name};" in data.missing
    renamed.unlink()
    (tmp_path / synsets()[0] / "ILSVRC2012_val_00000002.JPEG").unlink()
    (tmp_path / synsets()[0] / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(DataError, match="no image is called as the labels"):
        open_official("imagenet1k-real", tmp_path, incomplete=True)


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet1k-real"])
@pytest.mark.parametrize("by_kaggle", [True, False])
def test_imagenet_in_one_folder_with_a_list(tmp_path, name, by_kaggle):
    """As ILSVRC's archive unpacks, and as Kaggle's lies; the list says what the class folders would."""
    folder = tmp_path / "ILSVRC/Data/CLS-LOC/val"
    folder.mkdir(parents=True)
    for number in (2, 1, 3):
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(picture(number))
    with pytest.raises(DataError, match=r"no list of their classes: expected LOC_val_solution\.csv"):
        open_official(name, tmp_path, incomplete=True)
    shown = [synsets()[7], synsets()[5], synsets()[7]]
    if by_kaggle:
        rows = [f"ILSVRC2012_val_{i:08d},{wnid} 1 2 30 40 {wnid} 5 6 7 8 " for i, wnid in enumerate(shown, 1)]
        (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    else:
        (folder / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(shown) + "\n")
    data = open_official(name, tmp_path, incomplete=True)
    if name == "imagenet1k":
        found = [(data.samples.keys[i], data.samples[i].label) for i in range(3)]
        assert found == [(f"ILSVRC2012_val_{i:08d}.JPEG", label) for i, label in ((2, 5), (1, 7), (3, 7))]
    else:
        assert [sorted(data.accepted[key]) for key in data.samples.keys] == [[795, 970], [230, 231]]
    assert data.missing.startswith(f"{name} is not whole: 3 of 50,000 images are there; 1000 classes do not")
    assert ("of 46,837 labelled images" in data.missing) == (name == "imagenet1k-real")


def test_a_list_that_lacks_an_image_and_an_archive_that_is_packed(tmp_path):
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"is not unpacked; expected its images in .*val: mkdir val && tar"):
        open_official("imagenet1k", tmp_path, incomplete=True)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").write_bytes(picture(0))
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text(synsets()[0])
    with pytest.raises(DataError, match=r"synset of ImageNet for ILSVRC2012_val_00000002\.JPEG, found None"):
        open_official("imagenet1k", tmp_path, incomplete=True)


def test_objectnet_s_ids_follow_sorted_labels():
    labels = [row.label for row in objectnet.all_classes()]
    folders = [row.folder for row in objectnet.all_classes()]
    assert len(labels) == 313
    assert labels == sorted(labels)
    assert folders != sorted(folders)
    overlapping = objectnet.overlapping_classes()
    ids = [imagenet_id for row in overlapping for imagenet_id in row.imagenet_ids]
    assert (len(overlapping), len(ids), len(set(ids))) == (113, 125, 125)
    by_label = {row.label: row.imagenet_ids for row in overlapping}
    names = {label: {class_names()[number] for number in ids} for label, ids in by_label.items()}
    assert names["Alarm clock"] == {"analog clock", "digital clock"}
    assert names["Chair"] == {"barber chair", "folding chair", "rocking chair"}


def test_objectnet_s_three_scorings():
    own, restricted, mapped = objectnet.own_names(), objectnet.restricted(), objectnet.mapped()
    assert (len(own.prompts), len(restricted.prompts), len(mapped.prompts)) == (113, 125, 1000)
    assert own.prompts[1] == "backpack"
    for space in (restricted, mapped):
        chair = space.classes.index("Chair")
        columns = [column for column, label in enumerate(space.column_class) if label == chair]
        assert {space.prompts[column] for column in columns} == {
            "barber chair",
            "folding chair",
            "rocking chair",
        }
    assert sum(label < 0 for label in mapped.column_class) == 875


def test_objectnet_s_other_classes_are_left_out(tmp_path):
    layout = OFFICIAL["objectnet-own-names"]()
    lay_out(tmp_path / "objectnet-1.0" / "images", layout)
    other = tmp_path / "objectnet-1.0" / "images" / "air_freshener"
    other.mkdir()
    (other / "image.png").write_bytes(picture(0))
    data = open_official("objectnet-own-names", tmp_path, incomplete=True)
    assert (len(data.samples), data.border) == (113, 2)
    assert data.space.classes[data.samples[0].label] == "alarm clock"


def test_a_name_that_leaves_the_scoring_open_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"three scoring protocols.*objectnet-own-names, objectnet-restr"):
        check_variant("objectnet")
    (tmp_path / "squeegee").mkdir()
    task = TaskConfig(dataset="imagenetv2", dataset_root=str(tmp_path), task="zeroshot_classification")
    with pytest.raises(ConfigError, match=r"imagenetv2-threshold0\.7"):
        open_classified_task(task)


def test_a_name_and_nothing_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = {
        "imagenet-s": r"/imagenet-s, and no data set is known by this .*mean imagenet-.*; --dataset_root",
        "imagenet1k": r"/imagenet1k; expected a folder with n01440764 or val/n01440764 or .*; --dataset_root",
        "imagenetv2-threshold0.7": r"expected a folder with 0 or imagenetv2-threshold0\.7-format-val/0 and",
        "wds/imagenet1k": r"expected CLIP_benchmark's folder, with test/nshards\.txt in it$",
    }
    for name, said in expected.items():
        with pytest.raises(DataError, match=f": no such folder: .*{said}"):
            open_classified_task(TaskConfig(dataset=name, task="zeroshot_classification"))


@pytest.mark.parametrize("name", ["imagenet1k", "imagenetv2-threshold0.7", "wds/imagenet1k", "my-pictures"])
def test_a_root_that_is_not_there(tmp_path, name):
    place = tmp_path / "absent"
    task = TaskConfig(dataset=name, dataset_root=str(place), task="zeroshot_classification")
    with pytest.raises(DataError, match=f"no such folder: {place}(; expected |$)"):
        open_classified_task(task)


def test_a_name_that_leaves_the_scoring_open_is_told_before_its_root(tmp_path):
    task = {"task": "zeroshot_classification", "dataset_root": str(tmp_path / "absent")}
    with pytest.raises(ConfigError, match="objectnet has three scoring protocols"):
        open_classified_task(TaskConfig(dataset="objectnet", **task))
    shards = {**task, "dataset_root": str(tmp_path / "*.tar")}
    with pytest.raises(DataError, match="no shard matches"):
        open_classified_task(TaskConfig(dataset="objectnet", label_key="json.kind", **shards))


def test_names_of_an_official_data_set_in_another_order_are_refused(imagenette, tmp_path):
    names = list(OFFICIAL["imagenette"]().space.classes)

    def opened(lines):
        (tmp_path / "names.txt").write_text("\n".join(lines))
        settings = {"dataset_root": str(imagenette), "class_names": str(tmp_path / "names.txt")}
        task = TaskConfig(dataset="imagenette", task="zeroshot_classification", incomplete=True, **settings)
        return open_classified_task(task)

    assert opened(["a fish", *names[1:]]).space.classes[:2] == ("a fish", "English Springer Spaniel")
    with pytest.raises(
        ConfigError, match=r"in another order; expected 'tench' as number 1, found 'parachute'"
    ):
        opened([names[-1], *names[:-1]])
    with pytest.raises(
        ConfigError, match=r"class_names: expected 10, as many as the columns of scores, found 9"
    ):
        opened(names[:-1])
