"""The arrows between modules point one way; what the design says of imports and names, asserted.

errors, batch, config <- data, model, loss <- weights <- huggingface;  navit_clip <- eval <- training
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import requires
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("navit_clip", "eval", "training")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 400
LEAVES_ALONE = "navit_clip/huggingface/modeling_navit_siglip.py"
"""Goes into exported folders as it is, so it cannot be split: longer than others, and without our imports."""

LAYERS = [
    {"navit_clip.errors"},
    {
        "navit_clip.batch",
        "navit_clip.config",
        "navit_clip.file_lock",
        "navit_clip.json_lines",
        "navit_clip.obstacles",
        "navit_clip.json_object",
        "navit_clip.image_settings",
        "navit_clip.run_settings",
    },
    {
        "navit_clip.data",
        "navit_clip.model",
        "navit_clip.loss",
        "navit_clip.tokenizer",
        "navit_clip.distributed",
    },
    {"navit_clip.weights", "navit_clip.tokenizer_training", "navit_clip.remote_option"},
    {"navit_clip.huggingface"},
    {"navit_clip"},
    {"eval"},
    {"training"},
]
"""A module imports from its own layer and from those above it in this list. The longest prefix decides."""

INDEPENDENT = {"navit_clip.data", "navit_clip.model"}
"""Parts that know nothing of each other."""

SOLE_IMPORTERS = {
    "deepspeed": "training/quiet_deepspeed.py",
    "webdataset": "navit_clip/data/shards.py",
    "flash_attn": "navit_clip/model/attention.py",
    "torch.nn.attention": "navit_clip/model/attention.py",
}

ATTENTION_KERNELS = re.compile(r"scaled_dot_product_attention|varlen_attn|flash_attn_varlen|flex_attention")

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "factory", "registry", "core", "base"}


class Import(NamedTuple):
    module: str
    lazy: bool
    """Inside a function: done when that runs."""


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every module that a source file imports, by its dotted name; `from a import b` counts as a.b."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {id(node) for function in functions for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, id(node) in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [Import(f"{node.module}.{alias.name}", id(node) in lazy) for alias in node.names]
    return tuple(found)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> int:
    """The index in LAYERS of the most specific entry that holds the module."""
    holders = [(len(name), i) for i, names in enumerate(LAYERS) for name in names if is_inside(module, name)]
    return max(holders)[1]


def of_file(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_source = pytest.mark.parametrize("path", SOURCES, ids=of_file)


@each_source
def test_imports_point_one_way(path):
    module = module_name(path)
    for imported, _ in imports(path):
        if imported.partition(".")[0] in PACKAGES:
            assert layer(imported) <= layer(module), f"{module} imports {imported}"


@each_source
def test_data_and_model_do_not_know_each_other(path):
    parts = [part for part in INDEPENDENT if is_inside(module_name(path), part)]
    for imported, _ in imports(path):
        assert not any(is_inside(imported, other) for part in parts for other in INDEPENDENT - {part})


@each_source
def test_a_library_that_is_replaceable_is_imported_in_one_file(path):
    for imported, _ in imports(path):
        for library, sole in SOLE_IMPORTERS.items():
            assert not is_inside(imported, library) or of_file(path) == sole, f"{imported} in {of_file(path)}"


@each_source
def test_one_file_names_attention_kernels(path):
    if of_file(path) != SOLE_IMPORTERS["flash_attn"]:
        names = {
            node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        }
        assert not list(filter(ATTENTION_KERNELS.search, names))


@each_source
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES or of_file(path) == LEAVES_ALONE


def test_what_leaves_alone_needs_torch_and_transformers_alone():
    needed = {imported.partition(".")[0] for imported, _ in imports(ROOT / LEAVES_ALONE)}
    assert needed - set(sys.stdlib_module_names) == {"torch", "transformers"}


@each_source
def test_every_module_says_what_it_is(path):
    source = path.read_text()
    assert not source or ast.get_docstring(ast.parse(source))


@each_source
def test_names_say_something_and_shadow_nothing(path):
    own = set(path.relative_to(ROOT).with_suffix("").parts)
    assert not own & EMPTY_NAMES
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names
    assert path.stem not in {name.replace("-", "_").lower() for name in dependencies()}


@cache
def dependencies() -> set[str]:
    """Names of the distributions that the project needs, extras included, and of what they import as."""
    needed = {re.split(r"[\s\[<>=!~;]", requirement)[0] for requirement in requires("navit-clip") or ()}
    return needed | {"open_clip", "PIL", "flash_attn", "timm"}


def test_the_command_line_loads_its_commands_lazily():
    path = ROOT / "navit_clip" / "cli.py"
    assert all(
        imported.split(".")[:2] in (["navit_clip", "config"], ["navit_clip", "errors"])
        for imported, lazy in imports(path)
        if imported.partition(".")[0] in PACKAGES and not lazy
    )


@pytest.mark.parametrize("module", ["navit_clip", "navit_clip.cli"])
def test_importing_the_library_is_cheap(module):
    code = f"import sys, {module}; print(*(name.partition('.')[0] for name in sys.modules))"
    listing = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = {"deepspeed", "webdataset", "transformers", "open_clip", "timm", "matplotlib", "eval", "training"}
    assert not heavy & set(listing.split())


def test_pages_name_only_files_that_exist():
    """Module trees: lines that open with a file's or a folder's name, under a folder's line."""
    for page in (ROOT / "README.md", ROOT / "docs" / "architecture.md"):
        entries = tree_entries(page.read_text())
        assert len(entries) >= len(PACKAGES), f"{page.name} has no module tree"
        missing = [name for name in entries if not (ROOT / name).exists()]
        assert not missing, f"{page.name} names {missing}"


def tree_entries(text: str) -> list[str]:
    """Paths in the fenced blocks whose first line is a folder of the repository, by their indentation."""
    entries: list[str] = []
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        if not re.match(r"(navit_clip|training|eval)/\s", block):
            continue
        folders: list[tuple[int, str]] = []
        for indent, name in re.findall(r"^( *)([\w.]+/?)(?=\s|$)", block, re.M):
            folders = [folder for folder in folders if folder[0] < len(indent)]
            path = "".join(folder for _, folder in folders) + name
            entries.append(path)
            if name.endswith("/"):
                folders.append((len(indent), name))
    return entries


def test_tree_entries_follow_the_indentation():
    block = [
        "navit_clip/   the library",
        "  batch.py  carriers",
        "  data/",
        "    packing.py",
        "eval/",
        "  embed.py",
    ]
    assert tree_entries("\n".join(["```", *block, "```", ""])) == [
        "navit_clip/",
        "navit_clip/batch.py",
        "navit_clip/data/",
        "navit_clip/data/packing.py",
        "eval/",
        "eval/embed.py",
    ]
