"""Lists of names (class names, templates) as files on disk -> lists of strings, in the file's order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from navit_clip.errors import ConfigError


def read_names(path: Path, dataset: str, what: str) -> list[str]:
    """The lines of a text file; or a .json file's list, or the list that its mapping has for `dataset`.

    The mapping is the form of CLIP_benchmark's --custom_classname_file and --custom_template_file.

    Args:
        path: the file; its ending tells the form.
        dataset: which list of a mapping to take.
        what: what the names are for, to open an error's message.

    Raises:
        ConfigError: there is no such file, it has another form, or it holds no name.
    """
    if not path.is_file():
        raise ConfigError(f"{what}: no such file: {path}")
    try:
        text = path.read_text(encoding="utf-8")
        names = (
            _of_json(json.loads(text), dataset, where=f"{what}: {path}") if path.suffix == ".json" else None
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: {path} is not readable: {error}") from error
    if names is None:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ConfigError(f"{what}: {path} is empty")
    return names


def check_class_names(names: Sequence[str], own: Sequence[str], whose: str) -> None:
    """Whether names can be those of a data set's classes, as far as its own names tell.

    Args:
        names: in the order of the labels.
        own: the data set's own names, in that order; words of the others may be other words.
        whose: where they are from, as an error's message says it.

    Raises:
        ConfigError: there are more or fewer, or more of them stand where another class has that name than
            stand where their own has.
    """
    if len(names) != len(own):
        raise ConfigError(f"class_names: expected {len(own)}, as many as {whose}, found {len(names)}")
    given, owned = [[name.lower().replace("_", " ") for name in part] for part in (names, own)]
    known = set(owned)
    elsewhere = [
        place
        for place, (name, there) in enumerate(zip(given, owned, strict=True))
        if name != there and name in known
    ]
    in_place = sum(name == there for name, there in zip(given, owned, strict=True))
    if len(elsewhere) > in_place:
        place = elsewhere[0]
        raise ConfigError(
            f"class_names: the names of {whose} in another order; expected {own[place]!r} as number "
            f"{place + 1}, found {names[place]!r}"
        )


def _of_json(tree: Any, dataset: str, where: str) -> list[str]:
    if isinstance(tree, dict):
        if dataset not in tree:
            raise ConfigError(f"{where} has no list for {dataset!r}; it has {', '.join(tree) or 'none'}")
        tree = tree[dataset]
    if not isinstance(tree, list) or not all(isinstance(name, str) for name in tree):
        raise ConfigError(f"{where}: expected a list of strings, or a mapping from data sets to such lists")
    return tree
