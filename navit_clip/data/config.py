"""What training reads, and how it becomes batches: the settings of a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from navit_clip.data.augmentation import AugmentationConfig
from navit_clip.data.draws import check_template
from navit_clip.data.dropping import DropConfig, num_kept
from navit_clip.data.images import MAX_PIXELS
from navit_clip.data.remote import RemoteConfig
from navit_clip.data.resolution import ResolutionConfig
from navit_clip.data.samples import check_caption_key
from navit_clip.data.tar_index import MAX_BYTES
from navit_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and how it becomes batches."""

    shards: list[str]
    """Patterns of tar files: paths, braces, globs, folders, URLs. Each is a source, counted by itself."""
    weights: list[float] = field(default_factory=list)
    """How often an epoch has the samples of each pattern in `shards`, fractions too; none means once."""
    resampled: bool = False
    """Draw blocks of samples with replacement, by the weights, instead of each as often as they say."""
    caption_key: str = "txt"
    """Where captions are: "txt" (one a line) or "json.KEY" (a string, or several in a list or a mapping)."""
    other_captions: dict[str, float] = field(default_factory=dict)
    """Further such places, each with its chance to be drawn from, where that of caption_key is 1."""
    templates: list[str] = field(default_factory=lambda: ["{}"])
    """Each drawn caption is put into one of these, drawn too, where it has {}."""
    resolution: ResolutionConfig = field(default_factory=ResolutionConfig)
    """Sizes that images are resized to."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random crops and mirroring."""
    drop: DropConfig = field(default_factory=DropConfig)
    """Patches that are left out."""
    tokens_per_batch: int = 4096
    """Budget of one rank's micro-step, in image tokens."""
    exact_fill: bool = False
    """Fill the budget to the token: the last image of a batch loses as many more patches as it takes, few
    where sizes vary. Images that are all alike want a budget that they divide instead."""
    max_images: int = 0
    """Most images in a batch; 0 for any number. Where this binds, the budget is not filled."""
    max_text_tokens: int = 0
    """Most caption tokens in a batch; 0 for any number. Where this binds, the budget is not filled."""
    lookahead: int = 64
    """Images that may wait for a batch with a gap of their size. None lets more batches go by than this, and
    4 more with exact_fill; with resolution.same_in_batch, see docs/packing.md."""
    images_per_epoch: int = 0
    """Images in the data set, by which schedules over images seen tell how far training has come; a run
    without such a schedule leaves it at 0."""
    blocks_per_shard: int = 8
    """Pieces of consecutive samples that a shard is cut into, to be dealt and shuffled."""
    shuffle_window: int = 8
    """Blocks that a worker draws samples from at a time."""
    max_pixels: int = MAX_PIXELS
    """Most pixels of an image that is decoded; what has more is a bad sample."""
    max_bytes: int = MAX_BYTES
    """Most bytes of a sample's file that is read; what has more is a bad sample."""
    max_consecutive_faults: int = 1000
    """Bad samples in a row after which a worker gives up."""
    max_faults: int = 0
    """Bad samples in all after which a worker gives up; 0 for any number."""
    num_workers: int = 2
    """Processes a rank that read, decode and pack; 0 does it in the training process."""
    prefetch: int = 2
    """Batches that each worker process has ready in advance."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How shards are fetched that are not on this machine."""

    def __post_init__(self):
        check_caption_key(self.caption_key)
        for key, chance in self.other_captions.items():
            check_caption_key(key)
            if not chance > 0 or key == self.caption_key:
                raise ConfigError(
                    "other_captions: expected keys beside caption_key with chances above 0, "
                    f"found {key}: {chance}"
                )
        if self.weights and (len(self.weights) != len(self.shards) or min(self.weights) <= 0):
            raise ConfigError(
                f"weights: expected a number above 0 for each of the {len(self.shards)} patterns in shards, "
                f"found {self.weights}"
            )
        for template in self.templates:
            check_template(template, key="templates")
        if not self.templates:
            raise ConfigError("templates: expected at least one, found none")
        least = {"tokens_per_batch": 1, "lookahead": 1, "blocks_per_shard": 1, "shuffle_window": 1}
        least |= {"max_consecutive_faults": 1, "num_workers": 0, "prefetch": 1}
        least |= {"max_images": 0, "max_text_tokens": 0, "images_per_epoch": 0}
        least |= {"max_pixels": 1, "max_bytes": 1, "max_faults": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name}: expected at least {smallest}, found {getattr(self, name)}")

        scheduled = {"drop.schedule": self.drop.schedule, "resolution.stages": self.resolution.stages}
        for name, schedule in scheduled.items():
            if schedule and not self.images_per_epoch:
                raise ConfigError(
                    f"images_per_epoch: {name} goes by images seen; state how many the data set has"
                )
        if self.images_per_epoch and not any(scheduled.values()):
            raise ConfigError(
                f"images_per_epoch: only {' and '.join(scheduled)} go by it, and there is neither; "
                f"leave it at 0, found {self.images_per_epoch}"
            )

    def check_budget(self, patch_size: int, context_length: int) -> None:
        """Raises ConfigError where the largest image or the longest caption would not fit a batch."""
        smallest, largest = self.resolution.smallest(patch_size), self.resolution.largest(patch_size)
        if self.drop.kind == "by_length" and smallest == largest:
            raise ConfigError(
                f"data.drop.kind: by_length is for different lengths, found all images of {largest} patches"
            )
        most = max(
            num_kept(number, self.drop.least_rate(self.length_share(number, patch_size)))
            for number in range(smallest, largest + 1)
        )
        if most > self.tokens_per_batch:
            raise ConfigError(
                f"data.tokens_per_batch: expected at least {most}, which may stay of one image of {largest} "
                f"patches (data.resolution, drop; patch size {patch_size}), found {self.tokens_per_batch}"
            )
        if 0 < self.max_text_tokens < context_length:
            raise ConfigError(
                f"data.max_text_tokens: expected 0 or at least {context_length}, what one caption may have "
                f"(model.text.context_length), found {self.max_text_tokens}"
            )

    def length_share(self, num_patches: int, patch_size: int) -> float:
        """Where a number of patches lies between the fewest, 0, and the most, 1, that images may have."""
        smallest, largest = self.resolution.smallest(patch_size), self.resolution.largest(patch_size)
        return (num_patches - smallest) / max(largest - smallest, 1)


def line_patience(config: DataConfig) -> int | float:
    """Batches that an image lets go by before its line is next, full or not; no end where there is one line.

    Numbers of patches are equally likely, so a line fills while the others give sum / own batches. It gets
    twice that, or `lookahead` for each line where that is more.
    """
    numbers = config.resolution.patches
    if not config.resolution.same_in_batch or len(numbers) == 1:
        return math.inf
    return max(config.lookahead * len(numbers), 2 * math.ceil(sum(numbers) / min(numbers)))
