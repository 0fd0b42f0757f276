"""`navit-clip export`: a trained model -> a folder for transformers, verified before it is there."""

from __future__ import annotations

import argparse
from pathlib import Path

from navit_clip.errors import ConfigError
from navit_clip.huggingface.examples import Examples, find_examples
from navit_clip.huggingface.folder import write_own, write_siglip2
from navit_clip.huggingface.hub import check_push, push
from navit_clip.huggingface.model_card import CardFacts, has_card, model_card
from navit_clip.huggingface.onnx_towers import verify_onnx, write_onnx
from navit_clip.huggingface.open_clip_folder import settle, verify_open_clip, write_open_clip
from navit_clip.huggingface.quiet import quiet_transformers
from navit_clip.huggingface.reopening import verify
from navit_clip.huggingface.run_facts import read_run_facts
from navit_clip.huggingface.verification import Verification
from navit_clip.run_settings import run_folder
from navit_clip.weights import (
    TOKENS_PER_IMAGE,
    LoadedModel,
    check_place,
    load_model,
    resolve_model_folder,
    usual_tokens,
    weights_hash,
    whole_folder,
)

FORMATS = {
    "siglip2": (write_siglip2, verify),
    "own": (write_own, verify),
    "onnx": (write_onnx, verify_onnx),
    "open_clip": (write_open_clip, verify_open_clip),
}
"""What writes a folder, and what checks it."""


def main(argv: list[str]) -> int:
    """Exports, verifies, and says what was compared."""
    arguments = _parser().parse_args(argv)
    if arguments.tokens_per_image is not None and arguments.tokens_per_image < 1:
        raise ConfigError(f"--tokens-per-image: expected at least 1, found {arguments.tokens_per_image}")
    if arguments.push is not None:
        check_push(arguments.push)
    model_folder = resolve_model_folder(arguments.run)
    check_place(arguments.folder, replaces=has_card)
    examples = find_examples(arguments.images, arguments.run)
    loaded = load_model(model_folder)
    tokens_per_image = arguments.tokens_per_image or usual_tokens(arguments.run) or TOKENS_PER_IMAGE
    with quiet_transformers():
        facts = CardFacts(
            form=arguments.format,
            tower=arguments.tower,
            name=_name(arguments),
            folder=arguments.folder,
            repository=arguments.push,
            tokens_per_image=tokens_per_image,
            license=arguments.license,
            run=read_run_facts(arguments.run, weights_hash(loaded.model)),
        )
        verification = export(loaded, arguments.folder, facts, examples)
    print(f"{arguments.folder}: opened again and compared with the trained model")
    for line in verification.lines(examples.source):
        print(f"  {line}")
    if arguments.push is not None:
        print(f"  pushed to {push(arguments.folder, arguments.push, arguments.private)}")
    return 0


def _name(arguments: argparse.Namespace) -> str:
    """What the card calls the model: as the hub does, else as its run is called."""
    if arguments.push is not None:
        return arguments.push.partition("/")[2]
    return (run_folder(arguments.run) or arguments.folder.resolve()).name


def export(loaded: LoadedModel, folder: Path, facts: CardFacts, examples: Examples) -> Verification:
    """Writes a folder, which is there only once it is verified; an earlier export is replaced.

    Args:
        loaded: the model and its tokenizer.
        folder: where to.
        facts: the format, the tower, how many patches an image becomes, and what the card is to say.
        examples: what to verify on.

    Raises:
        ExportError: the format cannot express the model, or what was exported is not the trained model.
        CheckpointError: something other than an earlier export is in the way.
    """
    tower, tokens_per_image = facts.tower, facts.tokens_per_image
    with whole_folder(folder, replaces=has_card) as partial:
        write, check = FORMATS[facts.form]
        write(loaded, partial, tower, tokens_per_image)
        verification = check(loaded, partial, tower, examples.images, examples.captions, tokens_per_image)
        if facts.form == "open_clip":
            settle(partial, facts.address)
        card = model_card(loaded.model.config, facts, verification)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return verification


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="navit-clip export", description=__doc__)
    parser.add_argument("run", type=Path, help="a run, a checkpoint or a model folder")
    parser.add_argument("folder", type=Path, help="folder to write; an earlier export there is replaced")
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        default="siglip2",
        help="siglip2: a plain transformers model; own: any, with its modelling file; onnx: graphs; "
        "open_clip: its config and weights (siglip2)",
    )
    parser.add_argument(
        "--tower", choices=["both", "image", "text"], default="both", help="what to export (both)"
    )
    parser.add_argument("--push", metavar="OWNER/MODEL", help="upload the folder to the Hugging Face hub")
    parser.add_argument(
        "--private", action="store_true", help="make the repository that --push makes private"
    )
    parser.add_argument("--license", help="of the weights, as the hub names it, such as apache-2.0")
    parser.add_argument(
        "--images",
        help="images to verify on: a folder of images or a pattern of shards (the run's own shards)",
    )
    parser.add_argument(
        "--tokens-per-image",
        type=int,
        help="patches that the image processor cuts an image into at most (as the run was evaluated, or 256)",
    )
    return parser
