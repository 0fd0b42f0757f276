"""`navit-clip shards`: make shards from a folder of images, look at some, or check them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from navit_clip.config import load_config
from navit_clip.data.config import DataConfig
from navit_clip.data.faults import Faults
from navit_clip.data.samples import check_caption_key
from navit_clip.data.shards import find_shards
from navit_clip.errors import ConfigError
from navit_clip.model import ClipConfig
from navit_clip.remote_option import add_remote_option, remote_config
from navit_clip.shards.building import Build, build_shards, count_unnamed
from navit_clip.shards.inspection import inspect_shards, inspection_page, predict
from navit_clip.shards.validation import validate_shards

FAULTS_FOUND = 1


def main(argv: Sequence[str]) -> int:
    """Runs `build`, `inspect` or `validate`; the exit code is 0, or 1 where `validate` found a fault."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _build(arguments: argparse.Namespace) -> int:
    if not arguments.images.is_dir():
        raise ConfigError(f"{arguments.images}: expected a folder of images")
    faults = Faults()
    build = Build(
        arguments.images,
        arguments.captions,
        arguments.out,
        arguments.image_column,
        arguments.caption_column,
        arguments.images_per_shard,
    )
    manifest = build_shards(build, faults)
    number, shards = _counted(manifest.samples, "sample"), _counted(len(manifest.shards), "shard")
    print(f"{arguments.out}: {number}, {shards}, {manifest.bytes / 1e6:.1f} MB; {faults.summary()}")
    if manifest.empty_captions:
        print(f"{_counted(manifest.empty_captions, 'caption')} of the table empty, and in no sample")
    if unnamed := count_unnamed(build):
        print(f"{_counted(unnamed, 'picture')} of {arguments.images} in no row of the table")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.most < 1:
        raise ConfigError(f"--most: expected at least 1, found {arguments.most}")
    if arguments.out.is_dir() or not arguments.out.absolute().parent.is_dir():
        raise ConfigError(f"--out: {arguments.out} cannot be written: it is a folder, or not in one")
    if arguments.set and arguments.config is None:
        raise ConfigError(f"--set: expected with --config alone, found {' '.join(arguments.set)}")
    data = _data_config(arguments) if arguments.config else None
    remote = remote_config(arguments.remote) if data is None else data.remote
    caption_key = arguments.caption_key
    if caption_key is None:
        caption_key = "txt" if data is None else data.caption_key
    check_caption_key(caption_key or None)
    found = inspect_shards(find_shards(arguments.shards, remote), caption_key or None, arguments.most)
    prediction = None
    if data is not None:
        model = load_config(ClipConfig, arguments.config, arguments.set, section="model")
        prediction = predict(data, model.image.patch_size, seed=0)
    title, replaced = ", ".join(arguments.shards), arguments.out.exists()
    try:
        arguments.out.write_text(inspection_page(title, found, prediction), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {arguments.out} cannot be written: {error.strerror}") from error
    number, shards = _counted(found.num_samples, "sample"), _counted(found.num_shards, "shard")
    print(f"{number}, {shards}; by captions and image headers {found.faults.summary()}")
    print(f"{arguments.out}{', in the place of what it was' if replaced else ''}")
    return 0


def _data_config(arguments: argparse.Namespace) -> DataConfig:
    """What the config says, of the shards that are looked at: weights are those of its own sources."""
    shards = f"data.shards=[{','.join(map(repr, arguments.shards))}]"
    remote = [f"data.remote.{setting}" for setting in arguments.remote]
    settings = [*arguments.set, shards, "data.weights=[]", *remote]
    return replace(load_config(DataConfig, arguments.config, settings, section="data"), num_workers=0)


def _validate(arguments: argparse.Namespace) -> int:
    check_caption_key(arguments.caption_key or None)
    if arguments.workers < 1:
        raise ConfigError(f"--workers: expected at least 1, found {arguments.workers}")
    shards = find_shards(arguments.shards, remote_config(arguments.remote))
    start = time.perf_counter()
    checked = validate_shards(
        shards,
        arguments.caption_key or None,
        arguments.labels,
        arguments.workers,
        lambda fault: print(f"{fault.key}: {fault.cause}: {fault.detail.removeprefix(f'{fault.key}: ')}"),
    )
    seconds = time.perf_counter() - start
    print(
        f"{_counted(checked.samples, 'good sample')}, {_counted(len(checked.faults), 'fault')}, "
        f"{_counted(len(shards), 'shard')}, {seconds:.1f} s"
    )
    return FAULTS_FOUND if checked.faults else 0


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="navit-clip shards", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="build|inspect|validate")

    build = _command(commands, "build", "images and a table of captions -> shards and manifest.json")
    build.add_argument("images", type=Path, help="folder that the table's paths start from")
    build.add_argument("captions", type=Path, help="a .csv, .tsv, .jsonl or .parquet")
    build.add_argument("out", type=Path, help="folder to write; an interrupted build goes on in it")
    build.add_argument("--image-column", default="image", help="holds the path of an image (image)")
    build.add_argument("--caption-column", default="caption", help="holds a caption, or a list (caption)")
    build.add_argument("--images-per-shard", type=int, default=1000, metavar="N", help="good ones (1000)")
    build.set_defaults(run=_build)

    inspect = _command(commands, "inspect", "shards -> one HTML page of what is in them")
    inspect.add_argument("shards", nargs="+", help="tar files, braces, globs, folders, URLs")
    inspect.add_argument(
        "--out",
        type=Path,
        default=Path("inspection.html"),
        help="page to write, or to write anew (inspection.html)",
    )
    inspect.add_argument(
        "--caption-key", help="txt or json.KEY; '' not to look at captions (the config's, or else txt)"
    )
    inspect.add_argument("--most", type=int, default=20_000, metavar="N", help="samples to look at (20000)")
    inspect.add_argument("--config", type=Path, help="a run's YAML: predicts tokens and fill")
    inspect.add_argument("--set", nargs="+", default=[], metavar="key=value", help="settings over the YAML's")
    add_remote_option(inspect)
    inspect.set_defaults(run=_inspect)

    validate = _command(commands, "validate", "decode every sample; exit code 1 if any is bad")
    validate.add_argument("shards", nargs="+", help="tar files, braces, globs, folders, URLs")
    validate.add_argument(
        "--caption-key", default="txt", help="txt or json.KEY; '' where samples need no captions (txt)"
    )
    validate.add_argument("--labels", action="store_true", help="samples need a label (.cls), too")
    validate.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    add_remote_option(validate)
    validate.set_defaults(run=_validate)
    return parser


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=summary, description=summary)
