"""The three forms of tokenizer: ids, cutting, folders, pickling; and that transformers gives the same ids."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models, pre_tokenizers

from navit_clip.errors import CheckpointError, ConfigError, DataError
from navit_clip.tokenizer import BYTE_TOKENS, SPECIAL_TOKENS, load_tokenizer, train_tokenizer

CAPTIONS = [
    f"{article} {size} {colour} {animal}, {action} in the {place}!"
    for article in ("a", "The")
    for size in ("small", "large")
    for colour in ("red", "green", "brown")
    for animal in ("dog", "cat", "horse")
    for action in ("running", "sleeping")
    for place in ("garden", "snow")
]
ODD_TEXTS = [
    "", " ", "   ", " leading", "trailing ", "double  space  dog", "tab\tnew\nline\r\nreturn", "\x00 null",
    "▁", "▁▁ dog ▁cat", "İstanbul ẞ ß", "Ünïcödé", "e\u0301 and é", "日本語 テキスト", "👩‍👩‍👧 dog 🐕",
    "a\u00a0b\u2003c", "<eos>", "a <eos> dog", "<pad> <bos><mask> <unk>", "<EOS>", "<0x41>", "< < <", "</s>",
    "dog's 1234 tail.", "dog " * 100,
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, vocab_size=600)


def tokens_of(tokenizer, caption: str) -> list[str]:
    names = {number: token for token, number in tokenizer._backend.get_vocab().items()}
    return [names[number] for number in tokenizer.encode([caption], 64)[0]]


def test_vocabulary_opens_with_special_tokens_and_bytes(tokenizer):
    vocabulary = tokenizer._backend.get_vocab()
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert [vocabulary[token] for token in BYTE_TOKENS] == list(range(5, 261))
    assert sorted(vocabulary.values()) == list(range(tokenizer.vocab_size))


def test_words_are_lower_cased_and_carry_their_space(tokenizer):
    assert tokens_of(tokenizer, "A DOG sleeping  in") == ["a", "▁dog", "▁sleeping", "▁", "▁in", "<eos>"]


def test_unknown_characters_are_spelled_in_bytes(tokenizer):
    assert tokens_of(tokenizer, "é") == ["<0xC3>", "<0xA9>", "<eos>"]


def test_empty_caption_is_its_end_token(tokenizer):
    assert tokenizer.encode([""], 64) == [[1]]


def test_cutting_keeps_the_end_token(tokenizer):
    whole, cut = (tokenizer.encode(["a small red dog"], length)[0] for length in (64, 3))
    assert cut == [*whole[:2], 1]
    assert tokenizer.encode(["a small red dog"], len(whole)) == [whole]
    assert tokenizer.encode(["a small red dog"], 1) == [[1]]


def test_no_merge_crosses_a_word_or_spells_a_special_token():
    captions = ["<eos> <0x41> red,dog 12 12 red,dog <eos>"] * 50
    learned = train_tokenizer(captions, vocab_size=600)._backend.get_vocab()
    merged = [token for token in learned if token not in (*SPECIAL_TOKENS, *BYTE_TOKENS) and len(token) > 1]
    assert "▁red" in merged
    assert all("▁" not in token[1:] for token in merged)
    assert not any(token.strip("▁").startswith("<") and len(token.strip("▁")) > 1 for token in merged)
    assert not any("," in token and "d" in token for token in merged)
    assert "12" not in learned


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_ids_of_a_caption_are_those_of_its_words(tokenizer, text):
    assume(not any(token in text for token in SPECIAL_TOKENS))
    words = re.findall("▁?[^▁]*", text.replace(" ", "▁"))
    separate = [ids for word in words for ids in tokenizer.encode([word], 10_000)[0][:-1]]
    assert tokenizer.encode([text], 10_000)[0] == [*separate, 1]


TRAIN_AND_PRINT = """
import json, sys
from navit_clip.tokenizer import train_tokenizer
print(train_tokenizer(json.load(sys.stdin), vocab_size=512 + 64)._backend.to_str())
"""


def test_training_is_deterministic_across_processes(root):
    """Whatever the order of sets, which differs between this process and another."""
    captions = [*CAPTIONS, *ODD_TEXTS] * 2
    printed = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_PRINT],
        cwd=root,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        input=json.dumps(captions),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == train_tokenizer(captions, vocab_size=512 + 64)._backend.to_str() + "\n"


def test_rare_characters_do_not_crowd_out_merges():
    rare = ["".join(chr(0x4E00 + 40 * row + column) for column in range(40)) for row in range(100)]
    tokenizer = train_tokenizer([*CAPTIONS * 2, *rare], vocab_size=600)
    assert tokenizer.vocab_size <= 600
    assert tokens_of(tokenizer, "a dog") == ["a", "▁dog", "<eos>"]


def test_saved_and_loaded_ids_are_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.form == "siglip2"
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode([*CAPTIONS, *ODD_TEXTS], 64) == tokenizer.encode([*CAPTIONS, *ODD_TEXTS], 64)


ENCODE_WITH_TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
texts, found = json.load(sys.stdin), []
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, truncation=True, max_length=64)["input_ids"] for text in texts]
    padded = tokenizer(texts, padding="max_length", truncation=True, max_length=64)
    found.append([type(tokenizer).__name__, ids, padded["input_ids"], padded["attention_mask"]])
json.dump(found, sys.stdout)
"""


def test_transformers_gives_the_same_ids_in_a_fresh_process(tokenizer, tmp_path):
    """Of a tokenizer that lies alone, and of one in a folder of SigLIP 2."""
    texts = [*CAPTIONS, *ODD_TEXTS]
    alone, with_model = tmp_path / "alone", tmp_path / "with a model"
    for folder in (alone, with_model):
        tokenizer.save(folder)
    (with_model / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    printed = subprocess.run(
        [sys.executable, "-c", ENCODE_WITH_TRANSFORMERS, alone, with_model],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name, ids, padded, mask in json.loads(printed):
        assert name == "Siglip2Tokenizer"
        assert ids == tokenizer.encode(texts, 64)
        assert padded == [[0] * (64 - len(caption)) + caption for caption in ids]
        assert mask == [[0] * (64 - len(caption)) + [1] * len(caption) for caption in ids]


def test_open_clip_ids_are_open_clips_own(tmp_path):
    import open_clip

    tokenizer = load_tokenizer("open_clip")
    texts = ["A photo of a DOG.", "", "dog " * 100]
    padded = open_clip.get_tokenizer("ViT-B-32")(texts)
    ours = tokenizer.encode(texts, 77)
    assert [ids + [0] * (77 - len(ids)) for ids in ours] == padded.tolist()
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).form == "open_clip"
    assert load_tokenizer(tmp_path).encode(texts, 16) == tokenizer.encode(texts, 16)
    assert max(max(ids) for ids in ours) == tokenizer.vocab_size - 1


def word_level_folder(folder: Path, end_token: str | None) -> Path:
    """A Hugging Face tokenizer of another form, made here: one id per word, no end token of its own."""
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[END]": 1, "a": 2, "dog": 3}
    backend = BackendTokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token=end_token)
    tokenizer.save_pretrained(folder)
    return folder


def test_hugging_face_folder_is_read_and_ended(tmp_path):
    tokenizer = load_tokenizer(word_level_folder(tmp_path / "words", end_token="[END]"))
    assert tokenizer.form == "huggingface"
    assert tokenizer.encode(["a dog", "", "a a a a"], 3) == [[2, 3, 1], [1], [2, 2, 1]]
    assert tokenizer.vocab_size == 4
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").encode(["dog a"], 3) == [[3, 2, 1]]


def test_hugging_face_tokenizer_without_an_end_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither an end nor a separator"):
        load_tokenizer(word_level_folder(tmp_path, end_token=None))


def test_every_form_can_be_pickled(tokenizer, tmp_path):
    words = load_tokenizer(word_level_folder(tmp_path, end_token="[END]"))
    for original in (tokenizer, load_tokenizer("open_clip"), words):
        copy = pickle.loads(pickle.dumps(original))
        assert copy.encode(["a dog"], 8) == original.encode(["a dog"], 8)


@pytest.mark.parametrize("captions", [[], ["", "  \n"]])
def test_no_captions_is_an_error(captions):
    with pytest.raises(DataError, match="no captions"):
        train_tokenizer(captions, vocab_size=600)


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ConfigError, match=r"vocab_size: expected at least 512.*found 300"):
        train_tokenizer(CAPTIONS, vocab_size=300)


def test_folders_without_a_tokenizer_are_errors(tmp_path):
    with pytest.raises(CheckpointError, match="no such tokenizer folder"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no tokenizer that transformers can read"):
        load_tokenizer(tmp_path)
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=rf"; did you mean {tmp_path / 'run' / 'tokenizer'}\?$"):
        load_tokenizer(tmp_path / "run")
    (tmp_path / "tokenizer.json").write_text('{"half": ')
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)
