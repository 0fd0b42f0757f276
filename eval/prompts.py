"""Class prompts: class names and templates -> one unit vector per class.

A template is a caption with a place for the class name, written `{}` (or `{c}`, as CLIP_benchmark writes
it). The vector of a class is the mean of its prompts' unit vectors, made a unit vector again (CLIP §3.1.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from eval.embed import embed_captions
from eval.names import read_names
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from navit_clip.model.clip import NavitClip
from navit_clip.tokenizer import Tokenizer

PLAIN = ("{}",)
"""The class name by itself."""

OPEN_CLIP_SETS = {"openai-80": "OPENAI_IMAGENET_TEMPLATES", "openai-7": "SIMPLE_IMAGENET_TEMPLATES"}
"""Our name of a set -> its name in open_clip."""

PLACES = ("{}", "{c}")


def fill(template: str, class_name: str) -> str:
    """A prompt: the class name put where the template asks for it."""
    for place in PLACES:
        template = template.replace(place, class_name)
    return template


def load_templates(names: Sequence[str], dataset: str) -> tuple[str, ...]:
    """Reads templates: each name is a template itself, a set's name (`openai-80`, `openai-7`), or a file.

    A file holds one template a line; or, if it ends in .json, a list of them or CLIP_benchmark's mapping
    from data set names to lists, of which `dataset`'s is taken.

    Raises:
        ConfigError: a name is none of these, a file has no template for the data set, or a template has
            no place for the class name.
    """
    templates = []
    for name in names:
        if any(place in name for place in PLACES):
            templates.append(name)
        elif name in OPEN_CLIP_SETS:
            templates.extend(_open_clip_templates(name))
        elif Path(name).is_file():
            templates.extend(check_templates(read_names(Path(name), dataset, what="templates"), source=name))
        else:
            raise ConfigError(
                f"templates: {name!r} has no {{}} for the class name, and is neither a set of templates "
                f"({', '.join(OPEN_CLIP_SETS)}) nor a file"
            )
    return tuple(templates)


def check_templates(templates: Sequence[str], source: str | Path) -> tuple[str, ...]:
    """The same templates; raises ConfigError where one of them has no place for the class name."""
    for template in templates:
        if not any(place in template for place in PLACES):
            raise ConfigError(f"templates: {source}: {template!r} has no {{}} for the class name")
    return tuple(templates)


def class_embeddings(
    model: NavitClip,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    templates: Sequence[str],
    world: World,
    token_budget: int,
) -> Float[Tensor, "classes dim"]:
    """One unit vector per class, the same on every rank: the renormalised mean over its prompts."""
    prompts = [fill(template, name) for name in class_names for template in templates]
    vectors = embed_captions(model, tokenizer, prompts, world, token_budget)
    return F.normalize(vectors.unflatten(0, (len(class_names), len(templates))).mean(dim=1), dim=-1)


def _open_clip_templates(name: str) -> list[str]:
    # open_clip takes seconds to import, and only these two names need it.
    from open_clip import zero_shot_metadata

    return [template(PLACES[0]) for template in getattr(zero_shot_metadata, OPEN_CLIP_SETS[name])]
