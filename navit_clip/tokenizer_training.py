"""`navit-clip tokenizer train`: captions of shards -> a tokenizer folder for `load_tokenizer`."""

from __future__ import annotations

import argparse
from pathlib import Path

from navit_clip.data.draws import check_template, fill_template
from navit_clip.data.samples import read_samples
from navit_clip.errors import ConfigError
from navit_clip.obstacles import obstacle_to
from navit_clip.remote_option import add_remote_option, remote_config
from navit_clip.tokenizer import train_tokenizer

LONGEST_CAPTION = 64
"""Where the printed share of captions that would be cut is taken: SigLIP 2's context length."""


def main(argv: list[str]) -> int:
    """Learns a tokenizer from the captions of shards and writes its folder."""
    arguments = _parser().parse_args(argv)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ConfigError(f"{arguments.out}: expected a folder to write, after the shards; found a file")
    if arguments.out.exists() and any(arguments.out.iterdir()) and not arguments.overwrite:
        raise ConfigError(
            f"{arguments.out}: expected a folder that is empty or absent; models that were trained with the "
            "tokenizer in it need that one. --overwrite replaces it"
        )
    if obstacle := obstacle_to(arguments.out):
        raise ConfigError(f"{arguments.out}: expected a folder to write, after the shards; {obstacle}")
    samples = read_samples(arguments.shards, arguments.caption_key, remote=remote_config(arguments.remote))
    templates = arguments.template or ["{}"]
    for template in templates:
        check_template(template, key="--template")
    captions = [
        fill_template(template, caption)
        for sample in samples
        for caption in sample.captions
        for template in templates
    ]
    tokenizer = train_tokenizer(captions, arguments.vocab_size)
    tokenizer.save(arguments.out)

    lengths = [len(ids) for ids in tokenizer.encode(captions, max_length=2**31)]
    cut = sum(length > LONGEST_CAPTION for length in lengths) / len(lengths)
    print(f"{arguments.out}: {tokenizer.vocab_size} tokens, learned from {len(captions)} captions")
    print(f"{sum(lengths) / len(lengths):.1f} tokens a caption; {cut:.1%} are longer than {LONGEST_CAPTION}")
    if tokenizer.vocab_size < arguments.vocab_size:
        print(
            f"{arguments.vocab_size} were asked for; these captions repeat too little to fill them. "
            f"Set model.text.vocab_size={tokenizer.vocab_size}"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="navit-clip tokenizer", description=__doc__)
    train = parser.add_subparsers(required=True, metavar="train").add_parser(
        "train", help="learn a tokenizer from the captions of shards"
    )
    train.add_argument("shards", nargs="+", help="tar files; brace patterns such as cc3m-{000..331}.tar work")
    train.add_argument("out", type=Path, help="folder to write")
    train.add_argument("--vocab-size", type=int, default=32000, help="tokens to learn at most (32000)")
    train.add_argument("--caption-key", default="txt", help="txt, or json.KEY for a key of the sample's JSON")
    train.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="learn from this text with each caption in place of {}, as in 'a photo of {}'; repeatable",
    )
    train.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is there already")
    add_remote_option(train)
    return parser
