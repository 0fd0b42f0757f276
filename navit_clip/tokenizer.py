"""Captions -> token ids, by one interface over three forms of tokenizer.

    siglip2       BPE with byte fallback, learned from the user's own captions (`train_tokenizer`). It is
                  the form that transformers builds for every `siglip2` folder, and so the only one with
                  which a model can leave as a native `Siglip2Model`.
    open_clip     CLIP's BPE, as the open_clip package has it.
    huggingface   any tokenizer folder that transformers can read.

Ids of a caption end with the end token and are cut to a length so that the end token stays. They are not
padded, since captions are packed; only a text tower that was trained to attend to padding, as Google's
SigLIP towers were, has a `PaddedTokenizer` round one of these. Every tokenizer can be pickled, since worker
processes carry one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from navit_clip.errors import CheckpointError, ConfigError, DataError

PAD, END, BEGIN, UNKNOWN, MASK = SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
END_ID = SPECIAL_TOKENS.index(END)
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE = "▁"

SMALLEST_VOCABULARY = 512
ALPHABET_SHARE = 4
"""Single characters take at most a quarter of the vocabulary; rarer ones are spelled in bytes."""
LEARNED_PIECES = Regex(r"▁?[\p{L}\p{M}]+|▁?\p{N}|▁?<|▁?[^\s▁<\p{L}\p{M}\p{N}]+|\s|▁")
"""What a merge may join: a word's letters, one digit, or a run of signs, each with the space before it.

`<` stands alone, so that no merge can ever spell a special token or a byte token.
"""

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
OPEN_CLIP_FILE = "open_clip_tokenizer.json"
PADDING_FILE = "padding.json"

PROBES = (
    "A photo of two brown dogs running along the beach, 1998.",
    "the small red house at the end of a street; people are standing in front of it",
    "Woman holding an umbrella while riding her bicycle through heavy traffic",
    "football players, children and their mother watching something orange (left) over there",
    "écran à côté du château, größer als früher, niño pequeño",
    "東京の桜 №7 — Привет, мир! שלום 한국어 ✈️",
    "zebra-striped THINGS! <html> $19.99 @user #hashtag",
)
"""Captions on which two tokenizers that were learned from different texts can hardly agree."""

Cleaning = Literal["none", "whitespace", "lower", "canonicalize"]
"""What is done to a caption first: nothing, or what open_clip calls by these names."""


@runtime_checkable
class Tokenizer(Protocol):
    """Captions in, ids out."""

    @property
    def form(self) -> str:
        """`siglip2`, `open_clip` or `huggingface`."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    def encode(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        """Ids of each caption: at least one, at most `max_length`, the end token last, or then padding."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what `load_tokenizer` reads into a folder, making it where it is absent."""
        ...


class Siglip2Tokenizer:
    """Lower-cased BPE with byte fallback, spaces as ▁, `<eos>` last.

    A special token written out in a caption is that token, as it is to transformers.
    """

    form = "siglip2"

    def __init__(self, backend: tokenizers.Tokenizer):
        self._backend = backend

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def encode(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        # One at a time: the batch call starts threads, which worker processes have no cores for.
        return [_cut(self._backend.encode(caption).ids, max_length, END_ID) for caption in captions]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / TOKENIZER_FILE))
        settings = {
            "tokenizer_class": "Siglip2Tokenizer",
            "pad_token": PAD,
            "eos_token": END,
            "bos_token": BEGIN,
            "unk_token": UNKNOWN,
            "mask_token": MASK,
            "padding_side": "left",
        }
        (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")


class OpenClipTokenizer:
    """CLIP's lower-cased byte BPE: `<start_of_text>` first, `<end_of_text>` last."""

    form = "open_clip"

    def __init__(self):
        from open_clip.tokenizer import SimpleTokenizer

        self._backend = SimpleTokenizer()

    @property
    def vocab_size(self) -> int:
        return self._backend.vocab_size

    def encode(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        start, end = self._backend.sot_token_id, self._backend.eot_token_id
        return [_cut([start, *self._backend.encode(caption), end], max_length, end) for caption in captions]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer": "open_clip SimpleTokenizer", "vocab_size": self.vocab_size}
        (folder / OPEN_CLIP_FILE).write_text(json.dumps(settings, indent=2) + "\n")


class HuggingFaceTokenizer:
    """Whatever transformers reads, with its own special tokens; the end token is added where it adds none."""

    form = "huggingface"

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        try:
            backend = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0].rstrip(": ")
            inner = folder / "tokenizer"
            hint = f"; did you mean {inner}?" if inner.is_dir() else ""
            raise CheckpointError(
                f"{folder}: no tokenizer that transformers can read: {why}; found "
                f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'an empty folder'}{hint}"
            ) from error
        end = backend.eos_token_id if backend.eos_token_id is not None else backend.sep_token_id
        if end is None:
            raise ConfigError(f"{folder}: this tokenizer has neither an end nor a separator token")
        self._backend = backend
        self._end = end

    @property
    def vocab_size(self) -> int:
        return max(self._backend.get_vocab().values()) + 1

    def encode(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        ids = [self._backend.encode(caption, verbose=False) for caption in captions]
        ended = [
            caption if caption and caption[-1] == self._end else [*caption, self._end] for caption in ids
        ]
        return [_cut(caption, max_length, self._end) for caption in ended]

    def save(self, folder: Path) -> None:
        self._backend.save_pretrained(folder)


class PaddedTokenizer:
    """Another tokenizer's ids, padded on the right to `max_length`.

    For text towers whose padding is attended to and whose last position is pooled, whatever stands there.

    Args:
        tokenizer: whose ids these are.
        pad_id: the padding token.
        cleaning: what is done to a caption before it is encoded.
    """

    def __init__(self, tokenizer: Tokenizer, pad_id: int, cleaning: Cleaning = "none"):
        self.pad_id = pad_id
        self.tokenizer = tokenizer
        self.cleaning = cleaning

    @property
    def form(self) -> str:
        return self.tokenizer.form if self.cleaning == "none" else "huggingface"

    @property
    def vocab_size(self) -> int:
        return max(self.tokenizer.vocab_size, self.pad_id + 1)

    def encode(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        ids = self.tokenizer.encode([self._clean(caption) for caption in captions], max_length)
        return [[*caption, *[self.pad_id] * (max_length - len(caption))] for caption in ids]

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        settings = {"pad_id": self.pad_id, "cleaning": self.cleaning}
        (folder / PADDING_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    def _clean(self, caption: str) -> str:
        if self.cleaning == "none":
            return caption
        from open_clip.tokenizer import get_clean_fn

        return get_clean_fn(self.cleaning)(caption)


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """The tokenizer that `spec` names: `open_clip`, or a folder.

    A folder is one that `Tokenizer.save` or `navit-clip tokenizer train` wrote, or any Hugging Face
    tokenizer's. Its form is read from its files, not from a label.

    Raises:
        CheckpointError: there is no such folder, or no readable tokenizer in it.
        ConfigError: the tokenizer has no end token.
    """
    if str(spec) == "open_clip":
        return OpenClipTokenizer()
    folder = Path(spec)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such tokenizer folder (expected a folder that `navit-clip tokenizer train` "
            "wrote, a Hugging Face tokenizer folder, or the word open_clip)"
        )
    tokenizer = _unpadded(folder)
    if not (folder / PADDING_FILE).exists():
        return tokenizer
    try:
        settings = json.loads((folder / PADDING_FILE).read_text())
        return PaddedTokenizer(tokenizer, settings["pad_id"], settings["cleaning"])
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{folder / PADDING_FILE}: expected a pad_id and a cleaning: {error}"
        ) from error


def same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers may be taken for one: of one form and size, alike on captions of all sorts."""
    longest = 256
    like = one.form == other.form and one.vocab_size == other.vocab_size
    return like and one.encode(PROBES, longest) == other.encode(PROBES, longest)


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Siglip2Tokenizer:
    """Learns a SigLIP-2-form BPE from captions, which are held in memory meanwhile.

    Merges stay within a word, so a caption's ids are those of its words. The same captions in the same
    order give the same tokenizer. Few captions may not yield as many tokens as were asked for.

    Raises:
        ConfigError: `vocab_size` is too small for bytes, characters and some merges.
        DataError: there are no captions, or only empty ones.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size: expected at least {SMALLEST_VOCABULARY} ({len(SPECIAL_TOKENS)} special tokens, "
            f"{len(BYTE_TOKENS)} bytes, then characters and merges), found {vocab_size}"
        )
    captions = [caption for caption in captions if caption.strip()]
    if not captions:
        raise DataError("no captions to learn a tokenizer from: every caption is empty, or there are none")
    learner = _backend(models.BPE(byte_fallback=True))
    learner.pre_tokenizer = pre_tokenizers.Split(LEARNED_PIECES, behavior="isolated")
    reserved = [*SPECIAL_TOKENS, *BYTE_TOKENS]
    alphabet = _alphabet(captions, size=(vocab_size - len(reserved)) // ALPHABET_SHARE)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=reserved,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [(left, right) for left, right in learned["merges"]]
    return Siglip2Tokenizer(_backend(_model(learned["vocab"], merges), special_tokens=SPECIAL_TOKENS))


def _alphabet(captions: Sequence[str], size: int) -> list[str]:
    """The `size` most frequent characters, ties by code point: the trainer's own cut is not repeatable."""
    counts = Counter(SPACE)
    normalizer = _normalizer()
    for caption in captions:
        counts.update(normalizer.normalize_str(caption))
    return sorted(counts, key=lambda character: (-counts[character], character))[:size]


def _backend(model: models.BPE, special_tokens: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """The steps that transformers' `Siglip2Tokenizer` puts round any vocabulary, and the end token."""
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens(list(special_tokens))
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, END_ID)]
    )
    return backend


def _model(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> models.BPE:
    return models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", SPACE)])


def _cut(ids: list[int], max_length: int, end: int) -> list[int]:
    assert max_length >= 1
    return ids if len(ids) <= max_length else [*ids[: max_length - 1], end]


def _unpadded(folder: Path) -> Tokenizer:
    if (folder / OPEN_CLIP_FILE).exists():
        return OpenClipTokenizer()
    return _siglip2(folder) or HuggingFaceTokenizer(folder)


def _siglip2(folder: Path) -> Siglip2Tokenizer | None:
    """The folder's tokenizer if all its steps are those of the SigLIP 2 form, whatever its vocabulary."""
    path = folder / TOKENIZER_FILE
    if not path.exists():
        return None
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{path}: not a readable tokenizer: {error}") from error
    backend.no_padding()  # transformers saves the settings of its last call, too
    backend.no_truncation()
    expected = _backend(models.BPE(unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True), SPECIAL_TOKENS)
    return Siglip2Tokenizer(backend) if _steps(backend) == _steps(expected) else None


def _steps(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Everything about a tokenizer that bears on one caption's ids, but for its vocabulary and merges.

    Tokens that were added to the special ones, such as Gemma's unused ones, count as vocabulary.
    """
    steps = json.loads(backend.to_str())
    ids = {token["content"]: token["id"] for token in steps["added_tokens"]}
    return {
        **{name: steps[name] for name in ("normalizer", "pre_tokenizer", "decoder")},
        "model": {**steps["model"], "vocab": None, "merges": None},
        "template": (steps["post_processor"] or {}).get("single"),
        "special": [ids.get(token) for token in SPECIAL_TOKENS],
    }
