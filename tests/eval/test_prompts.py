from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from eval import prompts
from eval.prompts import canonical, class_embeddings, fill, load_templates
from eval.store import Store
from navit_clip.batch import Captions
from navit_clip.distributed import World
from navit_clip.errors import ConfigError
from tests.eval_builders import ByteTokenizer, judged, small_model

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def test_both_ways_of_writing_the_place():
    assert fill("a photo of a {}.", "cat") == "a photo of a cat."
    assert fill("a photo of a {c}.", "{odd} name") == "a photo of a {odd} name."


def test_open_clips_sets():
    assert len(load_templates(["openai-80"], "any")) == 80
    seven = load_templates(["openai-7"], "any")
    assert len(seven) == 7
    assert seven[0] == "itap of a {}."


def test_files_and_templates_count_together(tmp_path):
    (tmp_path / "templates.txt").write_text("a drawing of {}\n\n{c}\n")
    (tmp_path / "templates.json").write_text(json.dumps({"pets": ["my {}"]}))
    names = ["a {}.", str(tmp_path / "templates.txt"), str(tmp_path / "templates.json")]
    assert load_templates(names, "pets") == ("a {}.", "a drawing of {}", "{c}", "my {}")


def test_a_template_without_a_place_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'a photo' has no \{\} for the class name"):
        load_templates(["a photo"], "any")
    (tmp_path / "templates.txt").write_text("a {}\na photo\n")
    with pytest.raises(ConfigError, match=r"templates\.txt: 'a photo' has no \{\}"):
        load_templates([str(tmp_path / "templates.txt")], "any")


def test_class_embeddings_are_those_computed_one_by_one():
    model, tokenizer = small_model(), ByteTokenizer()
    names, templates = ["cat", "gas pump", "tench"], ["{}", "a photo of a {}.", "the {c}"]
    packed = class_embeddings(judged(model), names, templates, ALONE, token_budget=64)
    for name, vector in zip(names, packed, strict=True):
        prompts = [fill(template, name) for template in templates]
        ids = [tokenizer.encode([prompt], 32) for prompt in prompts]
        alone = torch.cat([model.encode_captions(Captions.pack(caption, identity=[0])) for caption in ids])
        expected = F.normalize(F.normalize(alone, dim=-1).mean(dim=0), dim=0)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=0)


def test_big_vision_s_sets_add_the_plain_name():
    assert load_templates(["clip-paper"], "any") == (*load_templates(["openai-80"], "any"), "{}")
    assert load_templates(["clip-best"], "any") == (*load_templates(["openai-7"], "any"), "{}")
    assert load_templates(["plain"], "any") == ("{}",)


def test_canonical_prompts():
    assert canonical("A photo of the_Cat's  toy.") == "a photo of the cats toy"
    model, names = judged(), ["Cat", "cat"]
    one, other = class_embeddings(model, names, ["a {}.", "a {}"], ALONE, 64, canonicalize=True)
    assert torch.equal(one, other)


def test_class_embeddings_are_computed_once(tmp_path, monkeypatch):
    store = Store(tmp_path, "weights")
    first = class_embeddings(judged(), ["cat", "dog"], ["a {}"], ALONE, 64, store=store)
    monkeypatch.setattr(prompts, "embed_tokens", None)
    assert torch.equal(class_embeddings(judged(), ["cat", "dog"], ["a {}"], ALONE, 64, store=store), first)
    for names, templates in ((["dog", "cat"], ["a {}"]), (["cat", "dog"], ["the {}"])):
        with pytest.raises(TypeError):
            class_embeddings(judged(), names, templates, ALONE, 64, store=store)
