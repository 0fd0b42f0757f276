"""`navit-clip embed`: images or captions -> a folder of vectors with keys; and pictures found by a sentence.

Parts are dealt to the ranks, each of which embeds its own from end to end. A part is there when it is whole,
so the same command goes on where it was stopped, on any number of ranks.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from navit_clip.batch import Patches
from navit_clip.contact_sheet import draw_contact_sheet
from navit_clip.data.faults import Faults
from navit_clip.data.patches import image_patches
from navit_clip.data.remote import is_remote
from navit_clip.distributed import World
from navit_clip.embedding_sources import CaptionSource, ImageSource
from navit_clip.errors import ConfigError, DataError, SampleError
from navit_clip.pretrained import NavitClip
from navit_clip.remote_option import add_remote_option, remote_config
from navit_clip.settings_hash import settings_hash
from navit_clip.vector_files import (
    Description,
    Vectors,
    begin,
    check_format,
    check_place,
    missing_parts,
    read_description,
    read_faults,
    read_vectors,
    write_part,
)
from navit_clip.weights import weights_hash

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(argv: Sequence[str]) -> int:
    """Embeds, or searches what was embedded."""
    arguments = _parser().parse_args(argv)
    if (arguments.search is None) == (arguments.images is None and arguments.captions is None):
        raise ConfigError("expected one of --images, --captions and --search")
    if arguments.search is not None and not arguments.search.strip():
        raise ConfigError("--search: expected a sentence, found nothing")
    if arguments.search is not None:
        return _search(arguments)
    with World.join() as world:
        _embed(arguments, world)
    return 0


def _embed(arguments: argparse.Namespace, world: World) -> None:
    if arguments.part_size < 1:
        raise ConfigError(f"--part-size: expected at least 1, found {arguments.part_size}")
    if arguments.num_workers < 0:
        raise ConfigError(f"--num-workers: expected at least 0, found {arguments.num_workers}")
    check_format(arguments.format)
    world.from_main(lambda: check_place(arguments.out))
    is_images = arguments.images is not None
    if is_images:
        _check_apart(arguments.out, arguments.images, "a folder", "found one inside")
    remote = remote_config(arguments.remote)
    source = (
        ImageSource(arguments.images, remote)
        if is_images
        else CaptionSource(arguments.captions, arguments.caption_key, remote)
    )
    model = _open(arguments, world.device)
    description = Description(
        model=arguments.model,
        weights=weights_hash(model.towers),
        settings=settings_hash(model),
        precision=arguments.precision,
        kind="images" if is_images else "captions",
        source=[
            name if is_remote(name) else os.path.abspath(name)
            for name in arguments.images or arguments.captions
        ],
        items=source.digest(),
        caption_key=None if is_images else arguments.caption_key,
        tokens_per_image=model.tokens_per_image if is_images else None,
        num_items=len(source),
        part_size=arguments.part_size,
        dim=model.towers.embedding_dim,
        format=arguments.format,
    )
    world.from_main(lambda: begin(arguments.out, description))
    num_made = 0
    missing = missing_parts(arguments.out, description)
    world.barrier()  # every rank has looked before any writes
    for number in missing[world.rank :: world.size]:
        start = number * description.part_size
        faults = Faults()
        items = range(start, min(start + description.part_size, len(source)))
        if isinstance(source, ImageSource):
            vectors = embed_images(model, source, items, arguments.num_workers, faults)
        else:
            texts = [source[item] for item in items]
            rows = model.encode_text(texts).cpu().numpy()
            vectors = Vectors([source.keys[item] for item in items], texts, rows)
        write_part(arguments.out, number, vectors, faults, description)
        num_made += len(vectors.keys)
    made = sum(world.gather_objects(num_made))
    skipped = read_faults(arguments.out, description)  # of all parts, those of earlier runs among them
    if skipped.total == len(source):
        raise DataError(f"not one of {len(source)} items could be used; {skipped.summary()}")
    if isinstance(source, CaptionSource):
        skipped = source.faults
    if world.is_main:
        done = f"{made:,} vectors made" if missing else "all parts are there already"
        print(f"{arguments.out}: {done}, {skipped.summary()}")


def _check_apart(out: Path, source: Sequence[str], what: str, found: str) -> None:
    """Raises ConfigError where vectors or a sheet are to lie among the images: it would be one of them."""
    for name in source:
        if Path(name).is_dir() and out.resolve().is_relative_to(Path(name).resolve()):
            raise ConfigError(f"{out}: expected {what} outside of the images in {name}, {found}")


def embed_images(
    model: NavitClip, source: ImageSource, items: Sequence[int], num_workers: int, faults: Faults
) -> Vectors:
    """Vectors of the items that can be used; the others are counted by cause."""
    config = model.towers.config.image
    how = config.patch_size, model.tokens_per_image, config.position.reach
    cut = _CutImages(source, items, how)
    keys: list[str] = []

    def good():
        # A generator of its own: a DataLoader without one draws a seed from the global state.
        loader = DataLoader(cut, batch_size=None, num_workers=num_workers, generator=torch.Generator())
        for item, patches in zip(items, loader, strict=True):
            if isinstance(patches, SampleError):
                faults.add(source.keys[item], patches)
            elif isinstance(patches, DataError):
                raise patches
            else:
                keys.append(source.keys[item])
                yield patches

    vectors = [pack.cpu().numpy() for pack in model.encode_patches(good())]
    rows = np.concatenate(vectors) if vectors else np.zeros((0, model.towers.embedding_dim), np.float32)
    return Vectors(keys, [""] * len(keys), rows)


class _CutImages(Dataset[Patches | SampleError | DataError]):
    def __init__(self, source: ImageSource, items: Sequence[int], how: tuple[int, int, int]):
        self._arguments = (source, items, how)

    def __len__(self) -> int:
        return len(self._arguments[1])

    def __getitem__(self, number: int) -> Patches | SampleError | DataError:
        source, items, how = self._arguments
        try:
            return image_patches(source[items[number]], *how)
        except (SampleError, DataError) as error:
            return error


def _search(arguments: argparse.Namespace) -> int:
    """Prints what fits a sentence best, and draws the pictures."""
    if arguments.top < 1:
        raise ConfigError(f"--top: expected at least 1, found {arguments.top}")
    description = read_description(arguments.out)
    sheet = arguments.sheet or arguments.out / "search.png"
    _check_sheet(sheet, description.source)
    vectors = read_vectors(arguments.out)
    model = _open(arguments, torch.device("cpu"))
    for name, found, expected in (
        ("weights", weights_hash(model.towers), description.weights),
        ("settings or another tokenizer", settings_hash(model), description.settings),
    ):
        if found != expected:
            raise ConfigError(
                f"{arguments.out}: vectors of {description.model}, made with other {name} than those of "
                f"{arguments.model}; embed again into another folder"
            )
    rows, words = torch.from_numpy(vectors.rows), model.encode_text([arguments.search])
    best = (rows @ words.T)[:, 0].topk(min(arguments.top, len(rows)))
    scores = best.values  # of captions cosines: t' and b are learned of images and captions, and of no others
    if description.kind == "images":
        scores = model.logits(rows[best.indices], words)[:, 0].sigmoid()
    found = list(zip(scores.tolist(), best.indices.tolist(), strict=True))
    for score, index in found:
        print(f"{score:#8.3g}  {vectors.keys[index]}  {vectors.captions[index]}".rstrip())
    if description.kind == "images":
        source = ImageSource(description.source, remote_config(arguments.remote))
        pictures = list(_pictures(source, [(vectors.keys[index], score) for score, index in found]))
        note = f"{len(found):,} of {len(vectors.keys):,} pictures, each with the probability of these words"
        draw_contact_sheet(pictures, arguments.search, note).save(sheet)
        print(sheet)
    return 0


def _check_sheet(sheet: Path, source: Sequence[str]) -> None:
    """Raises ConfigError where a sheet cannot be drawn, or would lie among the pictures that are searched."""
    if sheet.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"--sheet: expected the name of a picture, as sheet.png, found {sheet}")
    if not sheet.parent.is_dir():
        raise ConfigError(f"--sheet: {sheet.parent}: no such folder")
    _check_apart(sheet, source, "a picture", "where it would be one of them")


def _pictures(
    source: ImageSource, found: Sequence[tuple[str, float]]
) -> Iterator[tuple[str, bytes | SampleError]]:
    """Of each key that was found: the words under it, and its picture or why that is not to be had."""
    places: dict[str, int] = {}
    for place, key in enumerate(source.keys):
        places.setdefault(key, place)  # one that is repeated in a shard is a fault, and was not embedded
    for number, (key, probability) in enumerate(found, start=1):
        words = f"{number}.   {probability:#.3g}\n{key}"
        try:
            if key not in places:
                raise SampleError("gone from the source", key)
            yield words, source[places[key]]
        except SampleError as error:
            yield words, error
        except DataError as error:
            yield words, SampleError("unreadable file", str(error))


def _open(arguments: argparse.Namespace, device: torch.device) -> NavitClip:
    return NavitClip.from_pretrained(
        arguments.model,
        tokens_per_image=arguments.tokens_per_image,
        device=device,
        dtype=PRECISIONS[arguments.precision],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="navit-clip embed", description=__doc__)
    add = parser.add_argument
    add("model", help="a run, a model folder, a transformers or open_clip folder, or a name on the hub")
    add("out", type=Path, help="folder of vectors")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--images", nargs="+", metavar="SOURCE", help="shards, or a folder of images")
    what.add_argument("--captions", nargs="+", metavar="SOURCE", help="shards, or a text file, one a line")
    what.add_argument("--search", metavar="TEXT", help="find what fits a sentence among the vectors")
    add("--caption-key", default="txt", help="where shards have captions: txt or json.KEY (txt)")
    add("--format", choices=["npy", "parquet"], default="npy", help="of the vectors (npy)")
    add("--tokens-per-image", type=int, help="patches of an image at most (the model's own number, or 256)")
    add("--part-size", type=int, default=4096, help="items in a file: what an interruption can cost (4096)")
    add("--num-workers", type=int, default=2, help="decoding processes on each rank (2)")
    add("--precision", choices=list(PRECISIONS), default="fp32", help="of products and attention (fp32)")
    add("--top", type=int, default=24, help="how many --search shows (24)")
    add_remote_option(parser)
    add("--sheet", type=Path, help="picture that --search draws (OUT/search.png)")
    return parser
