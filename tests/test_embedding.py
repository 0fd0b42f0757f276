"""`navit-clip embed`: vectors of images and captions in files, and pictures found by a sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from navit_clip.cli import main as command
from navit_clip.contact_sheet import broken, draw_contact_sheet
from navit_clip.data.patches import image_patches
from navit_clip.embedding import _embed, _parser, main
from navit_clip.embedding_sources import CaptionSource
from navit_clip.errors import CheckpointError, ConfigError, DataError, SampleError
from navit_clip.pretrained import NavitClip
from navit_clip.tokenizer import PaddedTokenizer
from navit_clip.vector_files import read_vectors
from navit_clip.weights import save_model
from tests.data_builders import encode_image, noise_picture, pair, small_tokenizer, write_pairs, write_shard
from tests.huggingface.test_export import trained
from tests.ranks import on_ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(trained(), small_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    """Nine good samples, then a broken image."""
    folder = tmp_path_factory.mktemp("shards")
    broken = {"__key__": "broken", "png": b"not a picture", "txt": "a broken one"}
    write_shard(folder / "last.tar", [broken, pair("good", 8)])
    return [*write_pairs(folder, [5, 3]), str(folder / "last.tar")]


def flags(*more: str) -> list[str]:
    return ["--tokens-per-image", "30", "--num-workers", "0", "--part-size", "4", *more]


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_images_of_shards(model, shards, tmp_path, form, capsys):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "vectors"
    assert command(["embed", str(model), str(out), "--images", *shards, *flags("--format", form)]) == 0
    assert "9 vectors made, 1 skipped: undecodable image: 1" in capsys.readouterr().out
    vectors = read_vectors(out)
    assert vectors.keys[:2] == ["shard-000/sample00000", "shard-000/sample00001"]
    assert "last/good" in vectors.keys
    assert "last/broken" not in vectors.keys
    towers = NavitClip.from_pretrained(model, tokens_per_image=30)
    cut = [image_patches(encode_image(noise_picture(32, 32, seed=0)), 4, 30)]
    expected = torch.cat(list(towers.encode_patches(cut)))
    np.testing.assert_allclose(vectors.rows[:1], expected.numpy(), atol=1e-6)
    assert len(list(out.glob(f"part-*.{form}"))) == 3


def test_an_interrupted_embedding_goes_on(model, shards, tmp_path, capsys):
    arguments = [str(model), str(tmp_path / "vectors"), "--images", *shards, *flags()]
    main(arguments)
    whole = read_vectors(tmp_path / "vectors")
    (tmp_path / "vectors" / "part-00001.npy").unlink()
    with pytest.raises(CheckpointError, match="1 of 3 parts are missing"):
        read_vectors(tmp_path / "vectors")
    kept = (tmp_path / "vectors" / "part-00000.npy").stat().st_mtime_ns
    capsys.readouterr()
    main(arguments)
    assert "4 vectors made" in capsys.readouterr().out
    main(arguments)
    assert "all parts are there already, 1 skipped: undecodable image: 1" in capsys.readouterr().out
    again = read_vectors(tmp_path / "vectors")
    assert again.keys == whole.keys
    np.testing.assert_array_equal(again.rows, whole.rows)
    assert (tmp_path / "vectors" / "part-00000.npy").stat().st_mtime_ns == kept
    with pytest.raises(ConfigError, match=r"another making: images had at most 30 patches, not 40\."):
        main([*arguments, "--tokens-per-image", "40"])
    with pytest.raises(ConfigError, match=r"another making: they were made in fp32, not bf16\."):
        main([*arguments, "--precision", "bf16"])
    named = ", ".join(shards)
    with pytest.raises(ConfigError, match=rf"another making: they are of {named}, not of {shards[0]}\."):
        main([*arguments[:3], shards[0], *flags()])
    with pytest.raises(ConfigError, match=r"another making: they are of images, not captions\."):
        main([*arguments[:2], "--captions", *arguments[3:]])


def test_captions_that_have_changed_since_are_not_mixed(model, tmp_path):
    captions, out = tmp_path / "captions.txt", tmp_path / "vectors"
    captions.write_text("a dog\na cat\n")
    arguments = [str(model), str(out), "--captions", str(captions)]
    out.mkdir()
    (out / ".vectors.json").write_text("{")  # of a run that was killed as it began
    main(arguments)
    captions.write_text("a dog\na cow\n")
    with pytest.raises(ConfigError, match=r"another making: what is in the source has changed since\."):
        main(arguments)


def test_vectors_of_a_model_that_has_changed_since_are_not_mixed(shards, tmp_path):
    folder = tmp_path / "model"
    save_model(trained(), small_tokenizer(), folder)
    arguments = [str(folder), str(tmp_path / "vectors")]
    main([*arguments, "--images", *shards, *flags()])
    changed = trained()
    changed.logit_bias.data += 1
    save_model(changed, small_tokenizer(), folder)
    with pytest.raises(ConfigError, match=r"another making: the model's weights have changed since\."):
        main([*arguments, "--images", *shards, *flags()])
    with pytest.raises(ConfigError, match="made with other weights than those of"):
        main([*arguments, "--search", "a dog"])
    save_model(changed, small_tokenizer(), tmp_path / "other")
    said = rf"another making: they were made by {folder}, not {tmp_path / 'other'}\."
    with pytest.raises(ConfigError, match=said):
        main([str(tmp_path / "other"), arguments[1], "--images", *shards, *flags()])


def test_vectors_of_another_tokenizer_are_not_mixed(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "vectors"
    save_model(trained(), small_tokenizer(), folder)
    arguments = [str(folder), str(out), "--captions", str(captions_file(tmp_path)), "--part-size", "2"]
    main(arguments)
    save_model(trained(), PaddedTokenizer(small_tokenizer(), pad_id=0), folder)
    with pytest.raises(ConfigError, match="made with other settings or another tokenizer than those of"):
        main([str(folder), str(out), "--search", "a dog"])
    (out / "part-00001.npy").unlink()
    with pytest.raises(ConfigError, match="the model's settings or tokenizer have changed since"):
        main(arguments)


def test_a_file_that_cannot_be_read_is_not_skipped(model, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "vectors"
    (pictures / "a.png").mkdir(parents=True)
    with pytest.raises(DataError, match=r"a\.png: cannot be read: Is a directory$"):
        main([str(model), str(out), "--images", str(pictures), *flags()])
    assert not list(out.glob("part-*"))


def test_lines_are_counted_as_editors_do(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("a dog\u2028in snow\r\na\x0ccat\n\na cow\n".encode())
    source = CaptionSource([str(path)], "txt")
    assert source.keys == ["1", "2", "4"]


def test_captions_that_cannot_be_read_are_counted(model, tmp_path, capsys):
    broken = {"__key__": "broken", "png": b"", "txt": b"\xff"}
    write_shard(tmp_path / "a.tar", [pair("good", 1), broken])
    main([str(model), str(tmp_path / "vectors"), "--captions", str(tmp_path / "a.tar"), *flags()])
    assert "1 vectors made, 1 skipped: " in capsys.readouterr().out


def test_a_folder_of_images_that_is_not_one(model, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(encode_image(noise_picture(9, 9)))
    arguments = ["--images", str(pictures), *flags()]
    with pytest.raises(
        ConfigError, match=r"out: expected a folder outside of the images in .* found one inside$"
    ):
        main([str(model), str(pictures / "out"), *arguments])
    shard = pictures / "b.tar"
    write_shard(shard, [pair("good", 1)])
    with pytest.raises(DataError, match=r"images or shards, found both \(a\.png and b\.tar\)"):
        main([str(model), str(tmp_path / "out"), *arguments])
    shard.unlink()
    Path(os.fsdecode(os.fsencode(pictures) + b"/\xff.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"names of files in UTF-8, found '\\udcff\.png'$"):
        main([str(model), str(tmp_path / "out"), *arguments])


def test_going_on_from_another_folder(model, tmp_path, monkeypatch, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(encode_image(noise_picture(30, 20)))
    main([str(model), str(tmp_path / "out"), "--images", str(pictures), *flags()])
    monkeypatch.chdir(model.parent)
    relative = os.path.relpath(pictures)
    main([model.name, str(tmp_path / "out"), "--images", relative, *flags()])
    assert "all parts are there already" in capsys.readouterr().out


def test_flags_that_cannot_be(model, tmp_path):
    captions, out = str(captions_file(tmp_path)), str(tmp_path / "out")
    with pytest.raises(ConfigError, match="--num-workers: expected at least 0, found -1"):
        main([str(model), out, "--captions", captions, "--num-workers", "-1"])
    main([str(model), out, "--captions", captions, "--tokens-per-image", "30"])
    main([str(model), out, "--captions", captions, "--tokens-per-image", "40"])  # nothing to captions
    with pytest.raises(ConfigError, match="--sheet: expected the name of a picture"):
        main([str(model), out, "--search", "a dog", "--sheet", str(tmp_path / "x")])
    with pytest.raises(ConfigError, match=r"--sheet: .*gone: no such folder"):
        main([str(model), out, "--search", "a dog", "--sheet", str(tmp_path / "gone" / "x.png")])


def test_a_sheet_does_not_lie_among_the_pictures(model, tmp_path):
    """It would be embedded with them, and vectors of before refused as of another making."""
    pictures, out = tmp_path / "pictures", str(tmp_path / "out")
    (pictures / "deep").mkdir(parents=True)
    (pictures / "a.png").write_bytes(encode_image(noise_picture(30, 20)))
    main([str(model), out, "--images", str(pictures), *flags()])
    (tmp_path / "link").symlink_to(pictures / "deep")
    for sheet in (pictures / "sheet.png", pictures / "deep" / "sheet.png", tmp_path / "link" / "sheet.png"):
        with pytest.raises(ConfigError, match=r"sheet\.png: expected a picture outside of the images in "):
            main([str(model), out, "--search", "a dog", "--sheet", str(sheet)])
        assert not sheet.exists()


def embed_on_rank(world, arguments: list[str]) -> None:
    _embed(_parser().parse_args(arguments), world)


def embed_in_vain(world, arguments: list[str]) -> str:
    with pytest.raises(ConfigError) as raised:
        _embed(_parser().parse_args(arguments), world)
    return str(raised.value)


def test_what_stops_one_rank_stops_all(model, shards, tmp_path):
    """Rank 0 alone begins a folder; the others would wait for it until they give up."""
    (tmp_path / "thesis.tex").write_text("")
    said = on_ranks(2, embed_in_vain, [str(model), str(tmp_path), "--images", *shards, *flags()])
    assert ["found thesis.tex" in line for line in said] == [True, True]


def test_ranks_share_the_parts(model, shards, tmp_path):
    main([str(model), str(tmp_path / "one"), "--images", *shards, *flags()])
    on_ranks(2, embed_on_rank, [str(model), str(tmp_path / "two"), "--images", *shards, *flags()])
    one, two = read_vectors(tmp_path / "one"), read_vectors(tmp_path / "two")
    assert two.keys == one.keys
    np.testing.assert_array_equal(two.rows, one.rows)


def test_captions_of_shards_and_of_a_text_file(model, shards, tmp_path, capsys):
    main([str(model), str(tmp_path / "a"), "--captions", *shards[:2], *flags()])
    of_shards = read_vectors(tmp_path / "a")
    assert of_shards.keys[0] == "shard-000/sample00000#0"
    assert of_shards.captions[3] == "picture number 3"
    (tmp_path / "captions.txt").write_text("picture number 3\n\npicture number 4\n")
    main([str(model), str(tmp_path / "b"), "--captions", str(tmp_path / "captions.txt"), *flags()])
    of_file = read_vectors(tmp_path / "b")
    assert of_file.keys == ["1", "3"]
    np.testing.assert_allclose(of_file.rows[0], of_shards.rows[3], atol=1e-6)
    capsys.readouterr()
    main([str(model), str(tmp_path / "b"), "--search", "picture number 3"])
    assert capsys.readouterr().out.split()[:2] == ["1.00", "1"], (
        "a cosine: nothing says how likely two captions are"
    )


def test_search_ranks_as_the_model_does_and_draws_a_sheet(model, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        Image.fromarray(noise_picture(30, 20 + 9 * number, seed=number)).save(pictures / f"{number}.png")
    main([str(model), str(tmp_path / "vectors"), "--images", str(pictures), *flags()])
    capsys.readouterr()
    search = ["--search", "picture number 3", "--top", "3", "--tokens-per-image", "30"]
    assert main([str(model), str(tmp_path / "vectors"), *search]) == 0
    printed = capsys.readouterr().out.splitlines()
    towers = NavitClip.from_pretrained(model, tokens_per_image=30)
    vectors = read_vectors(tmp_path / "vectors")
    logits = towers.logits(torch.from_numpy(vectors.rows), towers.encode_text(["picture number 3"]))[:, 0]
    best = [vectors.keys[index] for index in logits.argsort(descending=True)[:3].tolist()]
    assert [line.split()[1] for line in printed[:3]] == best
    with Image.open(tmp_path / "vectors" / "search.png") as sheet:
        assert sheet.size == (12 + 3 * 204, 12 + 26 + 20 + 12 + 192 + 4 * 20 + 12)


def test_the_sheet_says_what_was_asked_and_how_probable_each_is(model, tmp_path, monkeypatch, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.fromarray(noise_picture(30, 20, seed=number)).save(pictures / f"{number}.png")
    main([str(model), str(tmp_path / "vectors"), "--images", str(pictures), *flags()])
    drawn = []
    sheet = Image.new("RGB", (9, 9))
    monkeypatch.setattr(
        "navit_clip.embedding.draw_contact_sheet", lambda *given: drawn.append(given) or sheet
    )
    capsys.readouterr()
    main([str(model), str(tmp_path / "vectors"), "--search", "a dog", "--top", "2"])
    ((found, *head),) = drawn
    assert head == ["a dog", "2 of 3 pictures, each with the probability of these words"]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[:2]]
    assert [words for words, _ in found] == [
        f"{number}.   {probability}\n{key}" for number, (probability, key) in enumerate(printed, start=1)
    ]
    blank = draw_contact_sheet(found)
    titled = draw_contact_sheet(found, *head)
    head_height = titled.height - blank.height
    assert titled.crop((0, head_height, *titled.size)).tobytes() == blank.tobytes()
    assert titled.crop((0, 0, titled.width, head_height)).getcolors() != [
        (titled.width * head_height, (255, 255, 255))
    ]


def test_a_search_says_which_pictures_are_gone(model, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.fromarray(noise_picture(30, 20, seed=number)).save(pictures / f"{number}.png")
    main([str(model), str(tmp_path / "vectors"), "--images", str(pictures), *flags()])
    (pictures / "0.png").unlink()
    (pictures / "1.png").unlink()
    (pictures / "1.png").mkdir()  # there, and not readable
    drawn = []
    sheet = Image.new("RGB", (9, 9))
    monkeypatch.setattr(
        "navit_clip.embedding.draw_contact_sheet", lambda *given: drawn.append(given[0]) or sheet
    )
    main([str(model), str(tmp_path / "vectors"), "--search", "a dog"])
    by_key = {words.split()[2]: data for words, data in drawn[0]}
    assert by_key["0.png"].cause == "gone from the source"
    assert by_key["1.png"].cause == "unreadable file"
    assert by_key["2.png"] == (pictures / "2.png").read_bytes()


def test_of_a_key_that_is_repeated_the_picture_that_was_embedded_is_shown(model, tmp_path, monkeypatch):
    """Of the first; a shard's reader counts the second as a fault."""
    first, second = pair("twice", 1), pair("twice", 2)
    write_shard(tmp_path / "a.tar", [first, pair("between", 3), second])
    main([str(model), str(tmp_path / "vectors"), "--images", str(tmp_path / "a.tar"), *flags()])
    assert read_vectors(tmp_path / "vectors").keys == ["a/twice", "a/between"]
    drawn = []
    sheet = Image.new("RGB", (9, 9))
    monkeypatch.setattr(
        "navit_clip.embedding.draw_contact_sheet", lambda *given: drawn.append(given[0]) or sheet
    )
    main([str(model), str(tmp_path / "vectors"), "--search", "a dog"])
    assert {words.split()[2]: data for words, data in drawn[0]}["a/twice"] == first["png"]


def test_a_sheet_says_why_a_picture_is_missing():
    blank = Image.new("RGB", (192, 192), "white")
    drawn = draw_contact_sheet([("1. shard-00017/000170034", SampleError("gone from the source", "x"))])
    assert drawn.crop((12, 12, 12 + 192, 12 + 192)).tobytes() != blank.tobytes()


def test_words_under_pictures_break_between_their_parts():
    font = ImageFont.load_default(size=13)
    assert broken("", font, 192) == []
    assert broken("12.   0.931\nstamps-test/food_fruit_cartoon_strawberry", font, 192) == [
        *("12.   0.931", "stamps-test/food_fruit_", "cartoon_strawberry"),
    ]
    assert broken("a red car in the snow by the house", font, 192) == [
        "a red car in the snow by the",
        "house",
    ]
    for words, number in (("3.\n" + "a" * 40, 3), ("W" * 200 + ".png", 4), ("i" * 100, 2), ("x/" * 90, 4)):
        lines = broken(words, font, 192)
        assert len(lines) == number
        assert all(font.getlength(line) <= 192 for line in lines)
        assert lines[0][:2] == words[:2]
        assert lines[-1].endswith(words[-4:])
        cut = "…" in lines[-1]
        assert cut == (len(words) > 100)
        assert cut or "".join(lines) == words.replace("\n", "")


def test_what_cannot_be_embedded_is_said(model, shards, tmp_path):
    with pytest.raises(ConfigError, match="one of --images, --captions and --search"):
        main([str(model), str(tmp_path / "out")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"found thesis\.tex$"):
        main([str(model), str(tmp_path / "full"), "--images", *shards, *flags()])
    with pytest.raises(CheckpointError, match=r"expected a folder of vectors, .* found thesis\.tex$"):
        main([str(model), str(tmp_path / "full"), "--search", "a dog"])
    with pytest.raises(CheckpointError, match=r"expected a folder of vectors, .* found no such folder$"):
        main([str(model), str(tmp_path / "gone"), "--search", "a dog"])
    with pytest.raises(ConfigError, match=r"thesis\.tex/out: cannot come to be there: .*tex is a file$"):
        main([str(model), str(tmp_path / "full" / "thesis.tex" / "out"), "--images", *shards, *flags()])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: expected images \(jpg, .* in this folder, found none$"):
        main([str(model), str(tmp_path / "out"), "--images", str(tmp_path / "empty"), *flags()])
    (tmp_path / "photo.png").write_bytes(encode_image(noise_picture(9, 9)))
    with pytest.raises(DataError, match=r"photo\.png: expected a folder of images, or shards \(tar\), found"):
        main([str(model), str(tmp_path / "out"), "--images", str(tmp_path / "photo.png"), *flags()])
    captions = tmp_path / "captions.txt"
    with pytest.raises(
        DataError, match=r"captions\.txt: no such file \(expected a text file with a caption a"
    ):
        main([str(model), str(tmp_path / "out"), "--captions", str(captions)])
    captions.write_bytes(b"a dog\n\xff\n")
    with pytest.raises(DataError, match=r"captions\.txt: expected a text file in UTF-8, found .* at byte 6$"):
        main([str(model), str(tmp_path / "out"), "--captions", str(captions)])
    with pytest.raises(DataError, match=r"captions\.txt: expected one text file alone, or shards, found 2"):
        main([str(model), str(tmp_path / "out"), "--captions", str(captions), str(captions)])
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="no shard"):
        main([str(model), str(tmp_path / "out"), "--images", str(tmp_path / "gone-*.tar"), *flags()])
    with pytest.raises(ConfigError, match="--part-size"):
        main([str(model), str(tmp_path / "out"), "--images", *shards, "--part-size", "0"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(DataError, match=r"not one of 1 items could be used; 1 skipped"):
            main([str(model), str(tmp_path / "none"), "--images", str(tmp_path / "broken"), *flags()])


def test_a_description_that_is_not_one(model, tmp_path):
    (tmp_path / "vectors.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(CheckpointError, match=r"vectors\.json: not a description of vectors"):
        main([str(model), str(tmp_path), "--search", "a dog"])
    main([str(model), str(tmp_path / "good"), "--captions", str(captions_file(tmp_path))])
    path = tmp_path / "good" / "vectors.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_items": 0}))
    with pytest.raises(
        CheckpointError, match=r"vectors\.json: not a description .* at least 1 as num_items$"
    ):
        main([str(model), str(tmp_path / "good"), "--search", "a dog"])


def captions_file(folder: Path) -> Path:
    path = folder / "captions.txt"
    path.write_text("a dog\na cat\na cow\n")
    return path


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_broken_parts_are_named(model, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "vectors"
    main([str(model), str(out), "--captions", str(captions_file(tmp_path)), *flags("--format", form)])
    part = out / f"part-00000.{form}"
    whole = part.read_bytes()
    for content in (b"", b"not an array", whole[: len(whole) // 2], whole[:-7]):
        part.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=rf"parts that are broken: part-00000\.{form} \(.*embed again"
        ):
            main([str(model), str(out), "--search", "a dog"])


def test_keys_that_do_not_belong_to_their_vectors_are_seen(model, tmp_path):
    out = tmp_path / "vectors"
    main([str(model), str(out), "--captions", str(captions_file(tmp_path)), *flags()])
    names = json.loads((out / "part-00000.json").read_text())
    for change in ({"keys": names["keys"][:2]}, {"captions": []}, {"keys": None}):
        (out / "part-00000.json").write_text(json.dumps({**names, **change}))
        with pytest.raises(CheckpointError, match="parts that are broken: part-00000"):
            read_vectors(out)
    (out / "part-00000.json").unlink()
    with pytest.raises(CheckpointError, match="parts that are broken: part-00000"):
        read_vectors(out)
