"""`navit-clip tokenizer train`: shards in, a tokenizer folder out."""

from __future__ import annotations

import json

import pytest

from navit_clip.errors import ConfigError, DataError
from navit_clip.tokenizer import load_tokenizer
from navit_clip.tokenizer_training import main
from tests.data_builders import encode_image, solid_picture, write_shard


@pytest.fixture
def shards(tmp_path):
    image = encode_image(solid_picture(8, 8))
    for shard in range(2):
        write_shard(
            tmp_path / f"shard-{shard}.tar",
            [
                {
                    "__key__": f"{shard}{number}",
                    "png": image,
                    "txt": f"a sleeping dog\nsome zebra number {number}",
                    "json": json.dumps({"name": "giraffe"}),
                }
                for number in range(5)
            ],
        )
    return tmp_path / "shard-{0..1}.tar"


def words(folder) -> set[str]:
    return set(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])


def test_a_tokenizer_is_learned_from_every_caption_of_the_shards(shards, tmp_path, capsys):
    assert main(["train", str(shards), str(tmp_path / "out"), "--vocab-size", "600"]) == 0
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.form == "siglip2"
    assert {"▁dog", "▁sleeping", "▁zebra"} <= words(tmp_path / "out")
    printed = capsys.readouterr().out
    assert f"{tokenizer.vocab_size} tokens, learned from 20 captions" in printed
    assert f"model.text.vocab_size={tokenizer.vocab_size}" in printed


def test_templates_and_another_caption_key(shards, tmp_path, capsys):
    templates = ["--template", "a picture of a {}.", "--template", "{} outdoors"]
    out = tmp_path / "out"
    main(["train", str(shards), str(out), "--vocab-size", "600", "--caption-key", "json.name", *templates])
    assert {"▁giraffe", "▁picture", "▁outdoors"} <= words(out)
    assert "▁dog" not in words(out)
    assert "learned from 20 captions" in capsys.readouterr().out


@pytest.mark.parametrize("template", ["no place", "{} and {}"])
def test_a_template_without_one_place_is_refused(shards, tmp_path, template):
    with pytest.raises(ConfigError, match="template"):
        main(["train", str(shards), str(tmp_path / "out"), "--template", template])


def test_no_shard_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no shard matches"):
        main(["train", str(tmp_path / "none-*.tar"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_too_small_a_vocabulary_is_refused(shards, tmp_path):
    with pytest.raises(ConfigError, match="vocab_size: expected at least 512"):
        main(["train", str(shards), str(tmp_path / "out"), "--vocab-size", "300"])


def test_a_forgotten_output_folder_is_noticed_before_the_work(shards):
    shard = shards.with_name("shard-0.tar")
    with pytest.raises(ConfigError, match="expected a folder to write, after the shards; found a file"):
        main(["train", str(shard), str(shard)])
    with pytest.raises(ConfigError, match=r"shard-0\.tar/out: expected a folder to write, .*tar is a file$"):
        main(["train", str(shard), str(shard / "out")])


def test_a_tokenizer_is_replaced_only_when_told(shards, tmp_path):
    command = ["train", str(shards), str(tmp_path / "out"), "--vocab-size", "600"]
    (tmp_path / "out").mkdir()
    assert main(command) == 0
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    with pytest.raises(ConfigError, match=r"out: expected a folder that is empty or absent"):
        main([*command, "--caption-key", "json.name"])
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before
    assert main([*command, "--caption-key", "json.name", "--overwrite"]) == 0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() != before
