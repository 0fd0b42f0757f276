"""What an evaluation is asked: tasks, and how images are shown for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eval.datasets import is_clip_benchmark
from eval.image_config import ImageConfig
from eval.views import View
from navit_clip.data.samples import check_caption_key
from navit_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One score sheet: a data set and what is asked of it."""

    dataset: str
    """Its name in results; also where it lies, unless dataset_root says otherwise."""
    task: Literal["zeroshot_classification", "zeroshot_retrieval"]
    """What is asked, as CLIP_benchmark calls it."""
    dataset_root: str = "{dataset}"
    """The folder of a data set known by name, a CLIP_benchmark folder, shards, or a folder of class folders;
    {dataset} stands for the name without its wds/, {dataset_cleaned} for the same with - in place of /."""
    incomplete: bool = False
    """Whether a data set known by name is judged though classes or images are missing; the result says so."""
    split: str = "test"
    """Subfolder of a CLIP_benchmark folder."""
    label_key: str = "cls"
    """Classification of shards: cls, or the json.KEY that holds the name of a sample's class."""
    caption_key: str = "txt"
    """Retrieval of shards: txt, or the json.KEY that holds captions."""
    class_names: str = ""
    """Classification: a file of class names, one a line or JSON; empty takes the data set's own."""
    templates: list[str] = field(default_factory=list)
    """Classification: a set's name (openai-80, openai-7, clip-paper, clip-best, plain), a file, or a template
    such as "a photo of a {}."; all that are listed count together. Empty takes the data set's own, or else
    the plain class name."""
    canonicalize: bool = False
    """Whether prompts and captions are lower-cased and lose their punctuation, as big_vision does."""
    border: int = 0
    """Pixels cut off on each side of every image; ObjectNet by name always loses its red border."""
    center: float = 1.0
    """Share of height and width kept around the middle: of ObjectNet and ImageNet-A, 1 is NaViT's "resize",
    0.75 its "crop"."""
    cost_tokens: list[int] = field(default_factory=list)
    """Classification by a packed model: also judge it at each of these tokens per image, with and without
    upscaling, in cascades from fewer tokens to more, and with patches dropped at random."""
    language: str = "en"
    """Of the prompts; only noted in the result."""

    def __post_init__(self):
        if not self.dataset:
            raise ConfigError("dataset: expected a name or a path, found nothing")
        check_caption_key(self.caption_key)
        kind, _, name = self.label_key.partition(".")
        if self.label_key != "cls" and (kind != "json" or not name):
            raise ConfigError(f"label_key: expected 'cls' or 'json.KEY', found {self.label_key!r}")
        View(border=self.border, center=self.center)  # checks both
        if any(tokens < 1 for tokens in self.cost_tokens):
            raise ConfigError(f"cost_tokens: expected at least 1 each, found {self.cost_tokens}")
        if self.cost_tokens and self.task != "zeroshot_classification":
            raise ConfigError(
                f"cost_tokens: costs are measured on zeroshot_classification, found {self.task}"
            )

    @property
    def name(self) -> str:
        """The data set without CLIP_benchmark's wds/."""
        return self.dataset.removeprefix("wds/")

    @property
    def path(self) -> str:
        """Where the samples are."""
        cleaned = self.name.replace("/", "-")
        return self.dataset_root.replace("{dataset}", self.name).replace("{dataset_cleaned}", cleaned)

    @property
    def is_official(self) -> bool:
        """Whether the path can hold a data set as its authors distribute it: a folder, of no shards."""
        folder = Path(self.path)
        has_shards = is_clip_benchmark(folder, self.split) or any(folder.glob("*.tar"))
        return not self.dataset.startswith("wds/") and folder.is_dir() and not has_shards


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ImageConfig):
    """A suite of tasks, and how images are shown for them."""

    tasks: list[TaskConfig] = field(default_factory=list)
    """Run in this order."""
