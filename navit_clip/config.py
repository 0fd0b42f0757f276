"""YAML and `key=value` overrides -> one frozen dataclass.

A config is a dataclass beside the thing that it configures; a YAML file states only how it differs
from the defaults. Any mapping in a file may open with `from: other.yaml` (a path relative to the file,
or from the command line to the working folder): the other file is read there first, and the mapping's
own keys then override it.

Unknown keys and values of the wrong type are errors that name the dotted key and its nearest neighbours.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from navit_clip.errors import ConfigError

Config = TypeVar("Config")

INCLUDE = "from"


def load_config(schema: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `dotted.key=value` overrides, and builds the dataclass `schema`.

    Raises:
        ConfigError: the file is missing or not YAML; a key is unknown; a value has the wrong type
            or fails the dataclass's own checks.
    """
    tree = _read(Path(path))
    for override in overrides:
        tree = _merge(tree, _parse_override(override))
    return build_config(schema, tree, where=str(path))


def build_config(schema: type[Config], tree: dict[str, Any], where: str) -> Config:
    """Builds the dataclass `schema` from plain data; `where` names the source in errors."""
    _check_keys(schema, tree, prefix="", where=where)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), tree))
    except OmegaConfBaseException as error:
        first_line = str(error).splitlines()[0]
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{where}: {key + ': ' if key else ''}{first_line}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    assert isinstance(config, schema)
    return config


def save_config(config: Any, path: str | Path) -> None:
    """Writes every setting, defaults included, so that the file alone says what was run."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint for an error message: the known words closest to a mistyped one, or all of them."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: expected a YAML file, found a folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found a {type(tree).__name__}")
    return _include(tree, folder=path.parent)


def _include(tree: Any, folder: Path) -> Any:
    """Replaces every `from: path` by the contents of that file, under the mapping's own keys."""
    if not isinstance(tree, dict):
        return tree
    own = {key: _include(value, folder) for key, value in tree.items() if key != INCLUDE}
    return _merge(_read(folder / tree[INCLUDE]), own) if INCLUDE in tree else own


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings merge key by key, anything else (lists too) is replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override reads key=value, as in optimizer.learning_rate=1e-3")
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{override!r}: not readable as key=value: {error}") from error
    return _include(tree, folder=Path())


def _check_keys(schema: type, tree: dict[str, Any], prefix: str, where: str) -> None:
    known = get_type_hints(schema)
    names = [field.name for field in fields(schema)]
    for key, value in tree.items():
        if key not in names:
            raise ConfigError(f"{where}: unknown key {prefix}{key}; {nearest(str(key), names)}")
        if is_dataclass(known[key]) and isinstance(value, dict):
            _check_keys(known[key], value, prefix=f"{prefix}{key}.", where=where)
