"""YAML and `key=value` overrides -> one frozen dataclass.

A config is a dataclass beside the thing that it configures; a YAML file states only how it differs
from the defaults. Any mapping in a file may open with `from: other.yaml` (a path relative to the file,
or from the command line to the working folder): the other file is read there first, and the mapping's
own keys then override it.

Unknown keys and values of the wrong type are errors that name the dotted key and its nearest neighbours, all
of a config at once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from navit_clip.errors import ConfigError, with_faults

Config = TypeVar("Config")

INCLUDE = "from"


def load_config(
    schema: type[Config],
    path: str | Path,
    overrides: Sequence[str] = (),
    section: str = "",
    usual: Mapping[str, Any] | None = None,
) -> Config:
    """Reads a YAML file, applies `dotted.key=value` overrides, and builds the dataclass `schema`.

    Args:
        schema: what to build.
        path: the file.
        overrides: settings that replace the file's.
        section: the file's key that holds the settings of `schema`; without one, the whole file does.
        usual: settings where the file has none, in place of the defaults of `schema`.

    Raises:
        ConfigError: the file is missing or not YAML; a key is unknown; a value has the wrong type
            or fails the dataclass's own checks.
    """
    tree = read_settings(Path(path))
    where = f"{path} and the command line" if overrides else str(path)
    tree = _with_settings(tree, overrides)
    if section:
        tree = tree.get(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{where}: {section}: expected {_expected(schema)}, found {_found(tree)}")
    return build_config(schema, {**(usual or {}), **tree}, where)


def config_of(schema: type[Config], settings: Sequence[str], where: str) -> Config:
    """Builds the dataclass `schema` from `dotted.key=value` settings alone; `where` names them in errors."""
    return build_config(schema, _with_settings({}, settings), where)


def build_config(schema: type[Config], tree: dict[Any, Any], where: str) -> Config:
    """Builds the dataclass `schema` from plain data; `where` names the source in errors.

    All that is wrong is said at once: unknown keys, values of the wrong type and what is missing; where there
    is nothing of that kind, every part that fails its own checks.
    """
    node = OmegaConf.structured(schema)
    faults: Faults = {}
    _assign(node, tree, "", faults)
    try:
        OmegaConf.resolve(node)
        for name in sorted(OmegaConf.missing_keys(node) - set(faults)):
            faults[name] = f"{name}: required, and not set"
    except InterpolationResolutionError as error:
        faults[str(error.full_key)] = f"{error.full_key}: {str(error).splitlines()[0]}"
    if not faults:
        _check(node, "", faults)
    if faults:
        raise ConfigError(with_faults(where, faults.values()))
    config = OmegaConf.to_object(node)
    assert isinstance(config, schema)
    return config


def save_config(config: Any, path: str | Path) -> None:
    """Writes every setting, defaults included, so that the file alone says what was run."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def changed_settings(path: str | Path, config: Any) -> Iterator[str]:
    """Every setting in which a config differs from a saved one, as `pairs: 600 -> 1000`."""
    as_saved = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config)))
    yield from _changes(read_settings(Path(path)), OmegaConf.to_container(as_saved), "")


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint for an error message: the known words closest to a mistyped one, or all of them."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def read_settings(path: Path, includers: tuple[Path, ...] = ()) -> dict[Any, Any]:
    """A file's settings as plain data, its `from:` lines replaced; `includers` are the files that led to it.

    Raises:
        ConfigError: the file is missing, not YAML, or no mapping.
    """
    trail = " from ".join(str(file) for file in (path, *reversed(includers)))
    if path.resolve() in [file.resolve() for file in includers]:
        raise ConfigError(f"{trail}: a config file includes itself")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ConfigError(f"{trail}: no such config file") from None
    except IsADirectoryError:
        raise ConfigError(f"{trail}: expected a YAML file, found a folder") from None
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{trail}: not readable as YAML: {said}") from error
    except OSError as error:  # also what OmegaConf raises for a file that holds a single number
        raise ConfigError(f"{trail}: not readable as a config: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{trail}: expected a mapping of settings, found {_found(tree)}")
    return _include(tree, folder=path.parent, includers=(*includers, path))


def _include(tree: Any, folder: Path, includers: tuple[Path, ...] = ()) -> Any:
    """Replaces every `from: path` by the contents of that file, under the mapping's own keys."""
    if isinstance(tree, list):
        return [_include(item, folder, includers) for item in tree]
    if not isinstance(tree, dict):
        return tree
    own = {key: _include(value, folder, includers) for key, value in tree.items() if key != INCLUDE}
    if INCLUDE not in tree:
        return own
    if not isinstance(tree[INCLUDE], str):
        raise ConfigError(f"{INCLUDE}: expected a path, found {_found(tree[INCLUDE])}")
    return _merge(read_settings(folder / tree[INCLUDE], includers), own)


def _merge(base: dict[Any, Any], over: dict[Any, Any]) -> dict[Any, Any]:
    """`over` wins; mappings merge key by key, anything else (lists too) is replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        own = f"{prefix}{key}"
        flat |= flat_settings(value, f"{own}.") if isinstance(value, dict) else {own: value}
    return flat


def _changes(before: Any, after: Any, name: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**after, **before}:
            yield from _changes(
                before.get(key, "unset"), after.get(key, "unset"), f"{name}.{key}".lstrip(".")
            )
    elif before != after:
        yield f"{name}: {before} -> {after}"


def _with_settings(tree: dict[Any, Any], settings: Sequence[str]) -> dict[Any, Any]:
    """A tree with `dotted.key=value` settings in the place of its own."""
    for setting in settings:
        tree = _merge(tree, _parse_override(setting))
    return tree


def _parse_override(override: str) -> dict[Any, Any]:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override reads key=value, as in optimizer.learning_rate=1e-3")
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{override!r}: not readable as key=value: {error}") from error
    return _include(tree, folder=Path())


Faults = dict[str, str]
"""Dotted keys -> what is wrong with each, as an error says it."""


def _assign(node: DictConfig, tree: dict[Any, Any], prefix: str, faults: Faults) -> None:
    """Writes plain data over a dataclass's defaults, key by key, so that every fault has its dotted key."""
    hints = get_type_hints(OmegaConf.get_type(node))
    OmegaConf.set_readonly(node, False)  # frozen dataclasses come as read-only nodes
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in hints:
            faults[name] = f"unknown key {name}; {nearest(str(key), list(hints))}"
            continue
        schema = _dataclass_of(hints[key])
        if schema and isinstance(value, dict):
            if OmegaConf.is_missing(node, key) or node[key] is None:
                node[key] = OmegaConf.structured(schema)
            _assign(node[key], value, f"{name}.", faults)
            continue
        data = _elements(hints[key], value, name, faults)
        try:
            OmegaConf.update(node, str(key), data, merge=False)
        except (OmegaConfBaseException, TypeError):
            wanted = f"{name}: expected {_expected(hints[key])}, found {_found(value)}"
            if isinstance(value, str) and _is_list(hints[key]):
                wanted += f"; write {key}: [{value}], or on a command line '{name}=[\"{value}\"]'"
            faults[name] = wanted


def _elements(hint: Any, value: Any, name: str, faults: Faults) -> Any:
    """Builds the dataclasses that a list or mapping holds; any other value comes back as it is."""
    schema = next(filter(None, map(_dataclass_of, get_args(hint))), None)
    if schema and get_origin(hint) is dict and isinstance(value, dict):
        return {key: _element(schema, data, f"{name}.{key}", faults) for key, data in value.items()}
    if schema and get_origin(hint) in (list, tuple) and isinstance(value, list):
        return [_element(schema, data, f"{name}[{index}]", faults) for index, data in enumerate(value)]
    return value


def _element(schema: type, data: Any, name: str, faults: Faults) -> DictConfig:
    node = OmegaConf.structured(schema)
    if isinstance(data, dict):
        _assign(node, data, f"{name}.", faults)
    else:
        faults[name] = f"{name}: expected {_expected(schema)}, found {_found(data)}"
    return node


def _check(node: Any, prefix: str, faults: Faults) -> None:
    """Makes the dataclasses from the inside out, so that a failed check is reported under its own key."""
    name = prefix.removesuffix(".")
    if isinstance(node, float) and not math.isfinite(node):  # NaN would pass every check for a range
        faults[name] = f"{name}: expected a finite number, found {node}"
    if not isinstance(node, Container):
        return
    before = len(faults)
    if isinstance(node, DictConfig):
        for key in node:
            _check(node[key], f"{prefix}{key}.", faults)
    else:
        for index, item in enumerate(node):
            _check(item, f"{name}[{index}].", faults)
    if len(faults) > before:
        return
    try:
        OmegaConf.to_object(node)
    except ConfigError as error:
        faults[name] = f"{prefix}{error}"


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass that a field holds, itself or as one choice of a union."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
    return next((choice for choice in choices if isinstance(choice, type) and is_dataclass(choice)), None)


def _expected(hint: Any) -> str:
    """A type hint in a user's words."""
    if is_dataclass(hint):
        return f"a mapping ({', '.join(field.name for field in fields(hint))})"
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in choices)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_expected(choice) for choice in choices)
    if _is_list(hint):
        return f"a list, each item {_expected(choices[0])}"
    if get_origin(hint) is tuple:
        return f"a list of {len(choices)}: {', '.join(_expected(choice) for choice in choices)}"
    if get_origin(hint) is dict:
        return f"a mapping, each value {_expected(choices[1])}"
    return "null" if hint is NoneType else hint.__name__


def _is_list(hint: Any) -> bool:
    """Whether a field holds any number of items."""
    return get_origin(hint) is list or Ellipsis in get_args(hint)


def _found(value: Any) -> str:
    """A value of a YAML file, short enough for an error message."""
    return "a mapping" if isinstance(value, dict) else repr(value)
