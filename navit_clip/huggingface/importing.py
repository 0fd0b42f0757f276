"""`navit-clip import`: SigLIP 2, SigLIP or open_clip's SigLIP -> a model folder of ours, verified first.

Only data is read: config, safetensors, tokenizer. Code that lies in a folder is never run. The image tower
then takes any number of images of any size in one pack, and a run can go on training from the folder.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from open_clip import get_tokenizer
from open_clip.model import CLIPTextCfg
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GemmaTokenizer,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)

from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.huggingface import open_clip_format, own_architecture, siglip, siglip2
from navit_clip.huggingface.import_verification import verify_import
from navit_clip.huggingface.open_clip_weights import clip_weights
from navit_clip.huggingface.pixel_range import check_pixel_range
from navit_clip.huggingface.quiet import quiet_transformers
from navit_clip.huggingface.weight_files import missing_weights, read_weights
from navit_clip.json_object import read_json
from navit_clip.model import ClipConfig, TwoTowers
from navit_clip.tokenizer import Cleaning, OpenClipTokenizer, PaddedTokenizer, Tokenizer, load_tokenizer
from navit_clip.weights import (
    LoadedModel,
    check_place,
    check_weights,
    is_model_folder,
    listing,
    save_model,
    usual_tokens,
)

CONFIG_FILE = "config.json"
KINDS = {"siglip2": (Siglip2Config, Siglip2Model), "siglip": (SiglipConfig, SiglipModel)}
"""What transformers calls the models that can come in: config and model classes."""
ONE_TOWER = "one tower alone; import the pair that it is from: a run can start from either tower (init_from)"
VOCABULARIES = ["tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"]
"""Files of a tokenizer, any of which will do."""
PADDED, PACKED = CAPTIONS = ("padded", "packed")


class ImportedModel(NamedTuple):
    """A model of another format, as ours and as its own library has it."""

    loaded: LoadedModel
    theirs: torch.nn.Module
    """transformers' or open_clip's own model with the same weights."""
    tokenizer: Any
    """Its library's own tokenizer."""


def main(argv: Sequence[str]) -> int:
    """Imports, verifies, and says what was compared."""
    arguments = _parser().parse_args(argv)
    check_place(arguments.out, replaces=is_model_folder)
    with quiet_transformers():
        imported = import_folder(
            arguments.folder, arguments.allow_pickle, arguments.tanh_gelu, arguments.captions
        )
        verification = verify_import(*imported, exact=not arguments.tanh_gelu)
    tokens = native_tokens(arguments.folder, imported.loaded.model.config)
    save_model(*imported.loaded, arguments.out, tokens)
    print(f"{arguments.out}: {_described(imported.loaded)}")
    for line in verification.lines("of noise, compared with the original"):
        print(f"  {line}")
    print(f"  images have at most {tokens} patches, as there, where no other number is asked for")
    return 0


def import_folder(
    folder: Path, allow_pickle: bool = False, tanh_gelu: bool = False, captions: str | None = None
) -> ImportedModel:
    """Reads a SigLIP 2, SigLIP or open_clip folder.

    Args:
        folder: as transformers' or open_clip's own loaders take it.
        allow_pickle: read pickled weights where there are no others, tensors alone.
        tanh_gelu: take an exact GELU for the tanh approximation.
        captions: "padded" to the context length, as Google's text towers were trained, or "packed";
            without it, packed where the tokenizer is saved to pad on the left under a mask, as our own
            exports are, and padded otherwise.

    Raises:
        CheckpointError: the folder is of another kind or is not whole, or its model cannot be expressed;
            lists what is wrong.
    """
    if not folder.is_dir():
        found = "found a file" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: {found} (expected a transformers or an open_clip folder)")
    if (folder / open_clip_format.CONFIG_FILE).exists():
        return _import_open_clip(folder, allow_pickle, tanh_gelu)
    if not (folder / CONFIG_FILE).exists():
        raise CheckpointError(
            f"{folder}: expected a transformers folder ({CONFIG_FILE}) or an open_clip folder "
            f"({open_clip_format.CONFIG_FILE}), found {listing(folder)}"
        )
    return _import_transformers(folder, allow_pickle, captions)


def native_tokens(folder: Path, config: ClipConfig) -> int:
    """Patches of an image at most, as the folder's own library prepares it.

    What its image processor says, or how many it has at the one size that an open_clip or SigLIP tower takes.

    Args:
        folder: what was imported.
        config: of the imported model.
    """
    if tokens := usual_tokens(folder):
        return tokens
    if (folder / open_clip_format.CONFIG_FILE).exists():
        side = read_json(folder / open_clip_format.CONFIG_FILE)["model_cfg"]["vision_cfg"].get("image_size")
        if isinstance(side, int):
            return (side // config.image.patch_size) ** 2
    return config.image.position.table_side**2


def _import_transformers(folder: Path, allow_pickle: bool, captions: str | None) -> ImportedModel:
    settings = read_json(folder / CONFIG_FILE)
    kind = str(settings.get("model_type"))
    if kind != own_architecture.MODEL_TYPE and kind not in KINDS:
        known = ", ".join([*KINDS, own_architecture.MODEL_TYPE])
        raise CheckpointError(
            f"{folder}: expected a pair of towers, of a model type among {known}, found {kind}"
            + (f": {ONE_TOWER}" if "siglip" in kind else "")
        )
    if kind == own_architecture.MODEL_TYPE:
        return _import_own(folder, settings)
    config_class, model_class = KINDS[kind]
    try:
        config = config_class.from_dict(settings)
    except (StrictDataclassError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: not a config that transformers reads: {error}"
        ) from error
    try:
        siglip2_config = siglip.siglip2_config_of(config) if isinstance(config, SiglipConfig) else config
        ours = siglip2.clip_config(siglip2_config)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    check_pixel_range(folder)
    _check_whole(folder, ["model"])
    weights = read_weights(folder, ["model"], allow_pickle)
    # Checkpoints of older versions hold the numbers 0, 1, 2 … of the positions, too.
    weights = {name: weight for name, weight in weights.items() if not name.endswith(".position_ids")}
    with torch.device("meta"):
        expected = model_class(config).state_dict()
    check_weights(weights, expected, where=str(folder))
    own_tokenizer = _own_tokenizer(folder)
    tokenizer = _tokenizer(own_tokenizer, folder, captions)
    theirs = model_class(config)
    theirs.load_state_dict(weights)
    if kind == "siglip":
        weights = siglip.siglip2_weights_of(weights)
    loaded = _loaded(ours, siglip2.clip_weights(weights, ours), tokenizer, folder)
    return ImportedModel(loaded, theirs.eval(), own_tokenizer)


def _import_own(folder: Path, settings: dict[str, Any]) -> ImportedModel:
    """What `navit-clip export --format own` wrote; the code that lies there is not run, ours is."""
    config = own_architecture.clip_config(settings, str(folder / CONFIG_FILE))
    check_pixel_range(folder)
    attended_padding = bool(settings["text_config"].get("attended_padding"))
    theirs = own_architecture.NavitSiglipModel(own_architecture.own_config(config, attended_padding, {}))
    _check_whole(folder, ["model"])
    weights = read_weights(folder, ["model"], allow_pickle=False)
    check_weights(weights, theirs.state_dict(), where=str(folder))
    theirs.load_state_dict(weights)
    captions = PADDED if attended_padding else PACKED
    with tempfile.TemporaryDirectory() as alone:
        # Beside a config that names code, transformers reads no tokenizer without running that.
        for path in folder.glob("tokenizer*"):
            shutil.copy(path, alone)
        own_tokenizer = _own_tokenizer(Path(alone))
        tokenizer = _tokenizer(own_tokenizer, Path(alone), captions)
    loaded = _loaded(config, weights, tokenizer, folder)
    return ImportedModel(loaded, theirs.eval(), own_tokenizer)


def _import_open_clip(folder: Path, allow_pickle: bool, tanh_gelu: bool) -> ImportedModel:
    settings = read_json(folder / open_clip_format.CONFIG_FILE)
    model = open_clip_format.open_clip_model(settings, tanh_gelu)
    config = open_clip_format.clip_config(model)
    check_pixel_range(folder)
    names = ["open_clip_model", "model"]
    _check_whole(folder, names, with_tokenizer=model.text.hf_tokenizer_name is not None)
    found = read_weights(folder, names, allow_pickle)
    theirs = open_clip_format.build(settings)
    weights = clip_weights(found, theirs.state_dict(), model.trunk, config, str(folder))
    theirs.load_state_dict(found)
    loaded = _loaded(config, weights, _open_clip_tokenizer(model.text, folder), folder)
    return ImportedModel(loaded, theirs.eval(), get_tokenizer(f"local-dir:{folder}"))


def _open_clip_tokenizer(text: CLIPTextCfg, folder: Path) -> Tokenizer:
    if text.pool_type == "argmax":
        return OpenClipTokenizer()
    if text.hf_tokenizer_name is None:
        return PaddedTokenizer(OpenClipTokenizer(), pad_id=0)
    clean = (text.tokenizer_kwargs or {}).get("clean", "whitespace")
    if clean not in get_args(Cleaning):
        raise CheckpointError(
            f"{folder}: text_cfg.tokenizer_kwargs.clean: expected one of {', '.join(get_args(Cleaning))}, "
            f"found {clean}"
        )
    backend = _own_tokenizer(folder)
    return PaddedTokenizer(_kept(backend), backend.pad_token_id, clean)


def _check_whole(folder: Path, weights: Sequence[str], with_tokenizer: bool = True) -> None:
    """Names all files that a half-copied folder lacks."""
    missing = missing_weights(folder, weights)
    if with_tokenizer:
        expected = {"tokenizer_config.json": ["tokenizer_config.json"], "tokenizer.json": VOCABULARIES}
        missing += [
            name for name, any_of in expected.items() if not any((folder / file).exists() for file in any_of)
        ]
    if missing:
        raise CheckpointError(f"{folder}: not copied whole: there is no {', no '.join(missing)} in it")


def _loaded(
    config: ClipConfig, weights: dict[str, Tensor], tokenizer: Tokenizer, folder: Path
) -> LoadedModel:
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, and its text tower takes only "
            f"{config.text.vocab_size}: not the tokenizer of this model"
        )
    with torch.device("meta"):
        model = TwoTowers(config)
    weights = {name: weight.float().contiguous() for name, weight in weights.items()}
    model.load_state_dict(weights, assign=True)
    return LoadedModel(model.eval(), tokenizer)


def _own_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder, which can pad."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder}: no tokenizer that transformers can read: {error}") from error
    if isinstance(tokenizer, GemmaTokenizer):
        # SigLIP 2's captions were lower-cased. Its fixed-resolution folders name Gemma's class, which is not.
        tokenizer = Siglip2Tokenizer.from_pretrained(folder)
    if not isinstance(tokenizer.pad_token_id, int):
        raise CheckpointError(f"{folder}: its tokenizer has no padding token")
    return tokenizer


def _tokenizer(own: Any, folder: Path, captions: str | None) -> Tokenizer:
    """A transformers tokenizer as ours; padded where the text tower was trained to see padding."""
    settings = read_json(folder / "tokenizer_config.json")
    if captions is None:
        masked = "attention_mask" in own.model_input_names
        captions = PACKED if settings.get("padding_side") == "left" and masked else PADDED
    tokenizer = _kept(own)
    return tokenizer if captions == PACKED else PaddedTokenizer(tokenizer, own.pad_token_id)


def _kept(own: Any) -> Tokenizer:
    """Ours, from the files that transformers writes of what it built."""
    with tempfile.TemporaryDirectory() as folder:
        own.save_pretrained(folder)
        return load_tokenizer(folder)


def _described(loaded: LoadedModel) -> str:
    image, text = loaded.model.config.image, loaded.model.config.text
    captions = "packed"
    if isinstance(loaded.tokenizer, PaddedTokenizer):
        captions = f"padded to {text.context_length} tokens, as it was trained"
    return (
        f"image tower {image.width} x {image.depth}, patches of {image.patch_size}; text tower "
        f"{text.width} x {text.depth}; captions {captions}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="navit-clip import", description=__doc__)
    parser.add_argument("folder", type=Path, help="a SigLIP 2, SigLIP or open_clip model folder")
    parser.add_argument("out", type=Path, help="model folder to write")
    parser.add_argument(
        "--captions",
        choices=CAPTIONS,
        help="how captions reach the text tower (as its tokenizer's settings say; Google's: padded)",
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read .bin or .pt weights, tensors alone")
    parser.add_argument(
        "--tanh-gelu", action="store_true", help="take open_clip's exact GELU for its tanh approximation"
    )
    return parser
