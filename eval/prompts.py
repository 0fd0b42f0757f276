"""Class prompts: class names and templates -> one unit vector per class.

A template is a caption with a place for the class name, written `{}` (or `{c}`, as CLIP_benchmark writes
it). The vector of a class is the mean of its prompts' unit vectors, made a unit vector again (CLIP §3.1.4).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from eval.embed import embed_tokens
from eval.model import JudgedModel
from eval.names import read_names
from eval.store import Store
from navit_clip.distributed import World
from navit_clip.errors import ConfigError

PLAIN = ("{}",)
"""The class name by itself."""

SETS = {
    "plain": PLAIN,
    "openai-80": ("OPENAI_IMAGENET_TEMPLATES",),
    "openai-7": ("SIMPLE_IMAGENET_TEMPLATES",),
    "clip-paper": ("OPENAI_IMAGENET_TEMPLATES", "{}"),
    "clip-best": ("SIMPLE_IMAGENET_TEMPLATES", "{}"),
}
"""A set's name -> templates, and the names that open_clip has for sets of them. The last two are
big_vision's, which adds the plain class name to OpenAI's 80 and 7."""

PLACES = ("{}", "{c}")


def fill(template: str, class_name: str) -> str:
    """A prompt: the class name put where the template asks for it."""
    for place in PLACES:
        template = template.replace(place, class_name)
    return template


def load_templates(names: Sequence[str], dataset: str) -> tuple[str, ...]:
    """Reads templates: each name is a template itself, a set's name (see `SETS`), or a file.

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
        elif name in SETS:
            templates.extend(template for part in SETS[name] for template in _templates_of(part))
        elif Path(name).is_file():
            templates.extend(check_templates(read_names(Path(name), dataset, what="templates"), source=name))
        else:
            raise ConfigError(
                f"templates: {name!r} has no {{}} for the class name, and is neither a set of templates "
                f"({', '.join(SETS)}) nor a file"
            )
    return tuple(templates)


def check_templates(templates: Sequence[str], source: str | Path) -> tuple[str, ...]:
    """The same templates; raises ConfigError where one of them has no place for the class name."""
    for template in templates:
        if not any(place in template for place in PLACES):
            raise ConfigError(f"templates: {source}: {template!r} has no {{}} for the class name")
    return tuple(templates)


def canonical(text: str) -> str:
    """Lower case, without punctuation, single spaces: big_vision's form of prompts and captions."""
    words = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower().split()
    return " ".join(words)


def class_embeddings(
    model: JudgedModel,
    class_names: Sequence[str],
    templates: Sequence[str],
    world: World,
    token_budget: int,
    canonicalize: bool = False,
    store: Store | None = None,
) -> Float[Tensor, "classes dim"]:
    """One unit vector per class, the same on every rank: the renormalised mean over its prompts.

    Args:
        model: which.
        class_names: at least one.
        templates: at least one; see `fill`.
        world: the ranks; all call this together.
        token_budget: tokens of a forward pass at most.
        canonicalize: whether prompts are made `canonical`.
        store: where the vectors of these tokens are kept and looked for.
    """
    prompts = [fill(template, name) for name in class_names for template in templates]
    if canonicalize:
        prompts = [canonical(prompt) for prompt in prompts]
    # Prompts repeat where class names do, and where templates differ in punctuation alone.
    place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    ids = model.tokenize(list(place))
    places = [place[prompt] for prompt in prompts]
    kept = None
    if store is not None:
        store = store.part("classes", ids, places, len(templates), token_budget)
        kept = store.read("vectors")
    # Found by all ranks or by none: those that lack them would wait for the others.
    if all(world.gather_objects(kept is not None)) and kept is not None:
        return kept.vectors.to(world.device)
    vectors = embed_tokens(model, ids, world, token_budget)
    of_prompts = vectors[torch.tensor(places, device=vectors.device)]
    of_classes = F.normalize(of_prompts.unflatten(0, (len(class_names), len(templates))).mean(dim=1), dim=-1)
    if store is not None:
        store.keep("vectors", of_classes)
    return of_classes


def _templates_of(part: str) -> list[str]:
    """A template itself, or those of a set of open_clip's."""
    if PLACES[0] in part:
        return [part]
    # open_clip takes seconds to import, and only its own sets need it.
    from open_clip import zero_shot_metadata

    return [template(PLACES[0]) for template in getattr(zero_shot_metadata, part)]
