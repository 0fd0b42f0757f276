"""Vectors on disk under the hash of all that they depend on: what is there need not be made again.

An interrupted evaluation finds its packs of images here, and any evaluation the class embeddings that an
earlier one made. Files appear whole or not at all; one that cannot be read counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class Kept(NamedTuple):
    """Vectors, and what belongs to them as JSON."""

    vectors: Float[Tensor, "rows dim"]
    about: Any


class Store:
    """A folder of vectors; made when the first are kept.

    Args:
        folder: where; several ranks and several evaluations may share it.
        facts: what all vectors in it depend on beside their own facts, such as the weights' hash.
    """

    def __init__(self, folder: Path, *facts: Any):
        self._folder = folder
        self._facts = facts
        self._parts: list[tuple[str, Path]] = []

    def part(self, kind: str, *facts: Any) -> Store:
        """The store of what also depends on these facts; JSON must tell them apart."""
        text = json.dumps([*self._facts, *facts], sort_keys=True, default=str)
        folder = self._folder / f"{kind}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"
        self._parts.append((kind, folder))
        return Store(folder)

    def read(self, name: str) -> Kept | None:
        """What was kept under a name."""
        try:
            with safe_open(self._path(name), framework="pt") as file:
                return Kept(file.get_tensor("vectors"), json.loads((file.metadata() or {})["about"]))
        except (OSError, SafetensorError, KeyError):
            return None

    def keep(self, name: str, vectors: Float[Tensor, "rows dim"], about: Any = None) -> None:
        """Keeps vectors and what belongs to them."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{name}.")
        os.close(descriptor)
        save_file({"vectors": vectors.cpu().contiguous()}, partial, metadata={"about": json.dumps(about)})
        os.replace(partial, path)

    def discard(self, kind: str) -> None:
        """Removes the parts of a kind that this store gave out; those of other evaluations stay."""
        for of_kind, folder in self._parts:
            if of_kind == kind:
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"
