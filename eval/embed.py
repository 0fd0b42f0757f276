"""Samples and captions -> unit vectors: packed, within a budget of tokens, on all ranks.

Samples and captions are cut into packs first and the packs are then dealt to the ranks, so a pack holds
the same whatever the number of ranks, and so do the vectors, to the last bit. They come back to every
rank, in the order given. Every rank runs the same number of forward passes (a rank that has run out
embeds a placeholder): where weights are sharded, each pass is a collective.

The global random state is left alone, and the model leaves in the mode it came in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from eval.image_packs import ImagePacks, Samples
from navit_clip.batch import Captions, Sample, caption_identity
from navit_clip.data.faults import Faults
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError, DataError
from navit_clip.model.clip import NavitClip
from navit_clip.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What embedding costs: tokens for each image, tokens for each forward pass, processes to decode."""

    tokens_per_image: int = 256
    """Patches of an image at most; each is resized, up or down, to come as near as its shape allows."""
    token_budget: int = 16384
    """Tokens of one forward pass at most."""
    num_workers: int = 2
    """Processes that decode and cut images, on each rank; 0 does it in the main process."""

    def __post_init__(self):
        for name, least in (("tokens_per_image", 1), ("token_budget", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if self.token_budget < self.tokens_per_image:
            raise ConfigError(
                f"token_budget: expected at least tokens_per_image = {self.tokens_per_image}, "
                f"found {self.token_budget}"
            )


@dataclass(frozen=True, slots=True)
class EmbeddedImages:
    """Unit vectors of the images that could be read, beside the samples they came from."""

    vectors: Float[Tensor, "images dim"]
    samples: tuple[Sample, ...]
    """In the order given, their encoded images let go."""
    faults: Faults
    """The samples that could not be used, by cause."""


def embed_images(model: NavitClip, samples: Samples, world: World, config: EmbedConfig) -> EmbeddedImages:
    """Embeds every image that can be read, in the order of `samples`.

    Raises:
        DataError: not one sample could be used.
        CheckpointError: the model's vectors are not finite.
    """
    packs = ImagePacks(
        samples,
        patch_size=model.config.image.patch_size,
        tokens_per_image=config.tokens_per_image,
        images_per_pack=config.token_budget // config.tokens_per_image,
        world=world,
    )
    placeholder = packs.placeholder().to(world.device)
    rows, read, bad = [], [], []
    with _evaluating(model), _progress(len(samples), "image", world) as progress:
        for pack in packs.rounds(config.num_workers):
            read += pack.samples
            bad += pack.faults
            if pack.images is None:
                model.encode_images(placeholder)
            else:
                rows.append(model.encode_images(pack.images.to(world.device)).float())
            progress.update(min(packs.images_per_round, len(samples) - progress.n))
    read, bad = _flat(world.gather_objects(read)), _flat(world.gather_objects(bad))
    faults = Faults()
    for _, key, error in sorted(bad, key=lambda fault: fault[0]):
        faults.add(key, error)
    if not read:
        raise DataError(f"not one of {len(samples)} samples could be used; {faults.summary()}")
    vectors = _gather(rows, model.embedding_dim, world, order=[index for index, _ in read])
    return EmbeddedImages(
        vectors, tuple(sample for _, sample in sorted(read, key=lambda pair: pair[0])), faults
    )


def embed_captions(
    model: NavitClip, tokenizer: Tokenizer, captions: Sequence[str], world: World, token_budget: int
) -> Float[Tensor, "captions dim"]:
    """Embeds captions, at least one, in the order given; captions of like length share a pack.

    Raises:
        CheckpointError: the model's vectors are not finite.
    """
    context_length = model.config.text.context_length
    ids = tokenizer.encode(captions, context_length)
    packs = _caption_packs([len(caption) for caption in ids], max(token_budget, context_length))
    own = packs[world.rank :: world.size]
    idle = [packs[0]] * (-(-len(packs) // world.size) - len(own))
    rows = []
    with _evaluating(model), _progress(len(captions), "caption", world) as progress:
        for number, pack in enumerate(own + idle):
            identity = [caption_identity(captions[index]) for index in pack]
            packed = Captions.pack([ids[index] for index in pack], identity)
            vectors = model.encode_captions(packed.to(world.device)).float()
            if number < len(own):
                rows.append(vectors)
            progress.update(min(len(pack) * world.size, len(captions) - progress.n))
    dealt = [index for rank in range(world.size) for pack in packs[rank :: world.size] for index in pack]
    return _gather(rows, model.embedding_dim, world, order=dealt)


def _caption_packs(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Caption numbers in packs of at most `token_budget` tokens, the shortest captions first."""
    packs: list[list[int]] = [[]]
    room = token_budget
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[index] > room:
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
def _evaluating(model: NavitClip) -> Iterator[None]:
    """No gradients, no dropout. Not inference mode: weights gathered from shards in it could not train on."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _progress(total: int, unit: str, world: World) -> tqdm:
    """A bar on the main rank's terminal, gone when it is done; none in a log file."""
    return tqdm(
        total=total, unit=unit, desc=f"embed {unit}s", leave=False, disable=None if world.is_main else True
    )


def _flat(lists: list[list[Any]]) -> list[Any]:
    return [item for part in lists for item in part]
