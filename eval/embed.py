"""Samples and captions -> unit vectors: in packs, within a budget of tokens, on all ranks.

Samples and captions are cut into packs first and the packs are then dealt to the ranks, so a pack holds
the same whatever the number of ranks, and so do the vectors, to the last bit. They come back to every
rank, in the order given. What a store keeps of an earlier evaluation is not made again; it was made from
the same packs, so that changes nothing either.

The global random state is left alone, and the model leaves in the mode it came in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from eval.image_config import ImageConfig
from eval.image_packs import ImagePack, ImagePacks, Samples
from eval.model import JudgedModel, Preparation
from eval.store import Kept, Store
from eval.views import View
from navit_clip.batch import Sample
from navit_clip.data.faults import Faults
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, DataError, SampleError


@dataclass(frozen=True, slots=True)
class EmbeddedImages:
    """Unit vectors of the images that could be read, beside the samples they came from."""

    vectors: Float[Tensor, "images dim"]
    samples: tuple[Sample, ...]
    """In the order given, their encoded images let go."""
    faults: Faults
    """The samples that could not be used, by cause."""
    mean_tokens: float
    """Tokens that an image had."""


class _Pack(NamedTuple):
    """What is known of a pack once it is embedded."""

    samples: list[tuple[int, Sample]]
    faults: list[tuple[int, str, SampleError]]
    num_tokens: int


def embed_images(
    model: JudgedModel,
    samples: Samples,
    world: World,
    config: ImageConfig,
    view: View | None = None,
    store: Store | None = None,
) -> EmbeddedImages:
    """Embeds every image that can be read, in the order of `samples`.

    Args:
        model: which.
        samples: the data set.
        world: the ranks; all call this together.
        config: how images are shown and what a forward pass may cost.
        view: what of each picture is shown; without one, all.
        store: where packs are kept as soon as they are done; without one, nowhere.

    Raises:
        DataError: not one sample could be used.
        CheckpointError: the model's vectors are not finite.
        ConfigError: the model cannot take images as the config asks.
    """
    view = view or View()
    preparation = model.preparation(config)
    size = images_per_pack(preparation, config)
    if store is not None:
        # Of a suite, only how its images are shown and packed: its tasks may change, and its processes.
        shown = {f.name: getattr(config, f.name) for f in fields(ImageConfig) if f.name != "num_workers"}
        store = store.part("images", samples.fingerprint(), shown, asdict(view))
    numbers = range(world.rank, -(-len(samples) // size), world.size)
    embedded = {number: kept for number in numbers if (kept := _kept_pack(store, number))}
    missing = [number for number in numbers if number not in embedded]
    packs = ImagePacks(samples, preparation, view, size, missing)
    with evaluating(model), _progress(len(samples), "image", world) as progress:
        progress.update(min(len(embedded) * size * world.size, len(samples)))
        for pack in packs.made(config.num_workers):
            embedded[pack.number] = _embed_pack(model, pack, store)
            progress.update(min(size * world.size, len(samples) - progress.n))
    own = [embedded[number] for number in numbers]
    parts = _flat(world.gather_objects([about for _, about in own]))
    faults = Faults()
    for _, key, error in sorted(
        (fault for part in parts for fault in part.faults), key=lambda fault: fault[0]
    ):
        faults.add(key, error)
    read = [pair for part in parts for pair in part.samples]
    if not read:
        raise DataError(f"not one of {len(samples)} samples could be used; {faults.summary()}")
    rows = [vectors.to(world.device) for vectors, _ in own]
    return EmbeddedImages(
        vectors=_gather(rows, model.embedding_dim, world, order=[index for index, _ in read]),
        samples=tuple(sample for _, sample in sorted(read, key=lambda pair: pair[0])),
        faults=faults,
        mean_tokens=sum(part.num_tokens for part in parts) / len(read),
    )


def images_per_pack(preparation: Preparation, config: ImageConfig) -> int:
    """As many as fit a forward pass though each has the most tokens; at least one."""
    return max(1, config.token_budget // preparation.most_tokens)


def embed_captions(
    model: JudgedModel, captions: Sequence[str], world: World, token_budget: int
) -> Float[Tensor, "captions dim"]:
    """Embeds captions, at least one, in the order given; captions of like length share a pack.

    Raises:
        CheckpointError: the model's vectors are not finite.
    """
    return embed_tokens(model, model.tokenize(captions), world, token_budget)


def embed_tokens(
    model: JudgedModel, ids: Sequence[list[int]], world: World, token_budget: int
) -> Float[Tensor, "captions dim"]:
    """`embed_captions` for captions that are tokenized already."""
    packs = _caption_packs([len(caption) for caption in ids], token_budget)
    rows = []
    with evaluating(model), _progress(len(ids), "caption", world) as progress:
        for pack in packs[world.rank :: world.size]:
            rows.append(model.encode_captions([ids[index] for index in pack]))
            progress.update(min(len(pack) * world.size, len(ids) - progress.n))
    dealt = [index for rank in range(world.size) for pack in packs[rank :: world.size] for index in pack]
    return _gather(rows, model.embedding_dim, world, order=dealt)


def _embed_pack(model: JudgedModel, pack: ImagePack, store: Store | None) -> tuple[Tensor, _Pack]:
    if pack.images is None:
        vectors = torch.empty(0, model.embedding_dim)
    else:
        vectors = model.encode_images(pack.images).cpu()
    about = _Pack(list(pack.samples), list(pack.faults), pack.num_tokens)
    if store is not None:
        store.keep(f"pack-{pack.number:06d}", vectors, _to_json(about))
    return vectors, about


def _kept_pack(store: Store | None, number: int) -> tuple[Tensor, _Pack] | None:
    kept: Kept | None = store.read(f"pack-{number:06d}") if store is not None else None
    return None if kept is None else (kept.vectors, _from_json(kept.about))


def _to_json(pack: _Pack) -> dict[str, Any]:
    return {
        "samples": [[index, s.key, list(s.captions), s.label] for index, s in pack.samples],
        "faults": [[index, key, error.cause, error.detail] for index, key, error in pack.faults],
        "num_tokens": pack.num_tokens,
    }


def _from_json(about: dict[str, Any]) -> _Pack:
    samples = [
        (index, Sample(key, b"", captions=tuple(captions), label=label))
        for index, key, captions, label in about["samples"]
    ]
    faults = [(index, key, SampleError(cause, detail)) for index, key, cause, detail in about["faults"]]
    return _Pack(samples, faults, about["num_tokens"])


def _caption_packs(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Caption numbers in packs of at most `token_budget` tokens, the shortest captions first."""
    packs: list[list[int]] = [[]]
    room = token_budget
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[index] > room and packs[-1]:
            packs.append([])
            room = token_budget
        packs[-1].append(index)
        room -= lengths[index]
    return packs


def _gather(
    rows: list[Tensor], dim: int, world: World, order: Sequence[int]
) -> Float[Tensor, "sequences dim"]:
    """All ranks' rows on every rank, sorted by `order`: their numbers, in rank order."""
    own = torch.cat([torch.empty(0, dim, device=world.device), *rows])
    gathered = world.gather_rows(own, world.counts(len(own)))
    if not torch.isfinite(gathered).all():
        raise CheckpointError("the model's embeddings are not finite: its weights are broken or diverged")
    return gathered[torch.tensor(order, device=world.device).argsort()]


@contextmanager
def evaluating(model: JudgedModel) -> Iterator[None]:
    """No gradients, no dropout. Not inference mode: weights gathered from shards in it could not train on."""
    was_training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.module.train(was_training)


def _progress(total: int, unit: str, world: World) -> tqdm:
    """A bar on the main rank's terminal, gone when it is done; none in a log file."""
    return tqdm(
        total=total, unit=unit, desc=f"embed {unit}s", leave=False, disable=None if world.is_main else True
    )


def _flat(lists: list[list[Any]]) -> list[Any]:
    return [item for part in lists for item in part]
