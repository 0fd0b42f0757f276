from __future__ import annotations

import torch
from safetensors.torch import save_file

from eval.store import Store


def test_what_was_kept_comes_back_to_the_bit(tmp_path):
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    store = Store(tmp_path, "weights").part("images", {"tokens": 64})
    store.keep("pack", vectors, about=[[1, "key", None]])
    kept = Store(tmp_path, "weights").part("images", {"tokens": 64}).read("pack")
    assert torch.equal(kept.vectors, vectors)
    assert kept.about == [[1, "key", None]]


def test_other_facts_are_another_place(tmp_path):
    Store(tmp_path, "weights").part("images", {"tokens": 64}).keep("pack", torch.ones(1, 1))
    for other in (
        Store(tmp_path, "others").part("images", {"tokens": 64}),
        Store(tmp_path, "weights").part("images", {"tokens": 65}),
        Store(tmp_path, "weights").part("classes", {"tokens": 64}),
    ):
        assert other.read("pack") is None


def test_a_file_that_cannot_be_read_counts_as_absent(tmp_path):
    part = Store(tmp_path).part("images")
    part.keep("pack", torch.ones(2, 2))
    (path,) = tmp_path.glob("*/pack.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    assert part.read("pack") is None
    save_file({"vectors": torch.ones(2, 2)}, path)
    assert part.read("pack") is None


def test_one_kind_is_discarded_and_no_other_evaluation_s(tmp_path):
    store = Store(tmp_path)
    for kind in ("images", "classes"):
        store.part(kind).keep("vectors", torch.ones(1, 1))
    Store(tmp_path).part("images", "of another data set").keep("vectors", torch.ones(1, 1))
    store.discard("images")
    assert Store(tmp_path).part("images").read("vectors") is None
    assert Store(tmp_path).part("classes").read("vectors") is not None
    assert Store(tmp_path).part("images", "of another data set").read("vectors") is not None
