"""DeepSpeed as it is wanted here: on CPUs where there is no GPU, and quiet. The one file that imports it."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# DeepSpeed compiles small ops when it is imported, and torch then remarks on the absence of a GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

import deepspeed  # noqa: E402
from deepspeed.ops.op_builder.async_io import AsyncIOBuilder  # noqa: E402
from deepspeed.utils import (  # noqa: E402
    logger,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    set_z3_leaf_modules,
)

__all__ = [
    "AsyncIOBuilder",
    "deepspeed",
    "make_muon",
    "safe_get_full_optimizer_state",
    "safe_set_full_optimizer_state",
    "set_z3_leaf_modules",
]

logger.setLevel(logging.WARNING)
# Two names that DeepSpeed calls and newer versions of torch have others for, said at every step; and one that
# torch's own compiler calls.
for deprecated in (r"distributed\.(all_gather_into|reduce_scatter)_tensor", r"_prims_common\.check"):
    warnings.filterwarnings("ignore", f"`torch\\.{deprecated}` is deprecated", FutureWarning)
# Between CPU ranks of one machine DeepSpeed would compile an op for shared memory, half a minute with a C++
# compiler and ninja on the PATH, and without them an error. Gloo does the same work.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def make_muon(groups: list[dict[str, Any]], **adamw: Any) -> torch.optim.Optimizer:
    """Muon for the groups with `use_muon`, for the others torch's AdamW with the settings `adamw`."""
    # Imported when asked for: it takes seconds.
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]  # what ZeRO goes by
    return MuonWithAuxAdam(groups, torch.optim.AdamW, adamw)
