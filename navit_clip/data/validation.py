"""One pass over every pair, with nothing drawn: what a validation loss is taken over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from navit_clip.batch import Batch, Patches
from navit_clip.data.draws import check_template, fill_template
from navit_clip.data.faults import Faults
from navit_clip.data.packing import Packer
from navit_clip.data.pairs import Pair, batch_of
from navit_clip.data.patches import image_patches
from navit_clip.data.remote import RemoteConfig
from navit_clip.data.resize import tokens_of_side
from navit_clip.data.samples import check_caption_key, read_samples
from navit_clip.errors import ConfigError, DataError, SampleError
from navit_clip.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ValidationDataConfig:
    """Held-out pairs, and how they become batches."""

    shards: list[str] = field(default_factory=list)
    """Patterns of tar files: paths, braces, globs, folders; none means no validation."""
    caption_key: str = "txt"
    """Where captions are: "txt" (one a line) or "json.KEY"; the first of a sample is taken."""
    template: str = "{}"
    """What the caption is put into, where it has {}."""
    side: int = 256
    """Side that images are resized to, in pixels: area side squared, aspect preserved."""
    tokens_per_batch: int = 4096
    """Budget of a batch, in image tokens."""

    def __post_init__(self):
        check_caption_key(self.caption_key)
        check_template(self.template, key="template")
        for name in ("side", "tokens_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")


def validation_batches(
    config: ValidationDataConfig,
    tokenizer: Tokenizer,
    patch_size: int,
    context_length: int,
    rank: int = 0,
    world_size: int = 1,
    faults: Faults | None = None,
    longest: int = 0,
    remote: RemoteConfig | None = None,
) -> Iterator[Batch]:
    """Batches of one rank's share: every pair once over all ranks, in order, the last batch as it comes.

    Ranks may get different numbers of batches, and where there are few samples, none.

    Args:
        config: see there.
        tokenizer: encodes captions.
        patch_size: in pixels.
        context_length: most tokens of a caption.
        rank: this process's number.
        world_size: the number of ranks; rank r takes every sample whose number i has i % world_size == r.
        faults: counts samples that were skipped.
        longest: most patches along a side (`PositionConfig.reach`); 0 for any number.
        remote: how to fetch shards from elsewhere.

    Raises:
        ConfigError: an image of this side would not fit a batch.
        DataError: no shard is found, or no sample of all is good.
    """
    num_tokens = tokens_of_side(config.side, patch_size)
    if num_tokens > config.tokens_per_batch:
        raise ConfigError(
            f"validation.data.tokens_per_batch: expected at least {num_tokens}, the patches of one image of "
            f"side {config.side} (patch size {patch_size}), found {config.tokens_per_batch}"
        )
    faults = Faults() if faults is None else faults
    packer: Packer[Pair[Patches]] = Packer(config.tokens_per_batch, lookahead=1)
    num_pairs = 0
    for sample in read_samples(config.shards, config.caption_key, False, faults, rank, world_size, remote):
        try:
            patches = image_patches(sample.image, patch_size, num_tokens, longest)
        except SampleError as error:
            faults.add(sample.key, error)
            continue
        caption = sample.captions[0]
        (ids,) = tokenizer.encode([fill_template(config.template, caption)], context_length)
        packer.add(Pair(sample.key, patches, caption, ids), len(patches))
        num_pairs += 1
        if packer.ready:
            yield batch_of(packer.cut().items)
    while packer.waiting:
        yield batch_of(packer.cut().items)
    if not num_pairs and world_size == 1:
        raise DataError(f"{', '.join(config.shards)}: no good sample; {faults.summary()}")
