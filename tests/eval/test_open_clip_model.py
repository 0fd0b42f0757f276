"""open_clip's models, beside open_clip's own evaluation and CLIP_benchmark's."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eval.embed import embed_images
from eval.evaluate import main
from eval.image_config import ImageConfig
from eval.open_clip_model import OpenClipModel
from eval.prompts import class_embeddings, load_templates
from eval.records import read_records
from eval.samples import ShardSamples
from navit_clip.data.images import decode_image
from navit_clip.distributed import World
from navit_clip.errors import CheckpointError, ConfigError
from navit_clip.huggingface.export import main as export
from navit_clip.tokenizer import load_tokenizer
from navit_clip.weights import save_model
from tests.data_builders import SIZES, noise_picture
from tests.eval_builders import write_labelled
from tests.huggingface.test_own_architecture import built

open_clip = pytest.importorskip("open_clip")

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
TOWER = {"layers": 2, "width": 64}
TINY = {
    "embed_dim": 32,
    "vision_cfg": {**TOWER, "image_size": 32, "patch_size": 8, "head_width": 32},
    "text_cfg": {**TOWER, "heads": 2, "context_length": 77, "vocab_size": 49408},
}
PADDED = {
    "embed_dim": 32,
    "vision_cfg": TINY["vision_cfg"],
    "text_cfg": {**TINY["text_cfg"], "no_causal_mask": True, "pool_type": "last", "context_length": 16},
    "custom_text": True,
}
"""A text tower that attends to padding and pools the last token, as SigLIP's do."""


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in (("tiny", TINY), ("tiny-padded", PADDED)):
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")


def judged(spec: str) -> OpenClipModel:
    torch.manual_seed(0)
    return OpenClipModel(spec, ALONE.device, torch.float32)


@pytest.mark.parametrize("name", ["tiny", "tiny-padded"])
def test_class_embeddings_are_open_clip_s(name):
    model = judged(f"open_clip:{name}")
    names = ["tench", "gas pump", "a very long name of a thing that has many words"]
    templates = load_templates(["openai-7"], "any")
    ours = class_embeddings(model, names, templates, ALONE, token_budget=200)
    tokenizer = open_clip.get_tokenizer(name)
    theirs = open_clip.build_zero_shot_classifier(model.module, tokenizer, names, templates).T
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    lengths = {len(ids) for ids in model.tokenize(["a", "a photo of a dog"])}
    assert lengths == ({3, 7} if name == "tiny" else {16})


def test_image_vectors_are_the_model_s(tmp_path):
    model = judged("open_clip:tiny")
    samples = ShardSamples([write_labelled(tmp_path / "images.tar", [0] * 7)], None, labels=True)
    config = ImageConfig(tokens_per_image=16, token_budget=48, num_workers=2)
    ours = embed_images(model, samples, ALONE, config)
    _, _, transform = open_clip.create_model_and_transforms("tiny")
    pictures = [Image.fromarray(noise_picture(*SIZES[number], seed=number)) for number in range(7)]
    with torch.no_grad():
        theirs = F.normalize(model.module.encode_image(torch.stack([transform(p) for p in pictures])), dim=-1)
    torch.testing.assert_close(ours.vectors, theirs, atol=1e-5, rtol=0)
    assert ours.mean_tokens == 16


def test_weights_of_a_file(tmp_path):
    torch.save(judged("open_clip:tiny").module.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(1)
    spec = f"open_clip:tiny,{tmp_path / 'weights.pt'}"
    loaded = OpenClipModel(spec, ALONE.device, torch.float32)
    expected = judged("open_clip:tiny").module.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.module.state_dict().items())
    assert loaded.pretrained == str(tmp_path / "weights.pt")
    assert judged("open_clip:tiny").pretrained == "random weights"


def test_names_and_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"ViT-B-31: open_clip has no such model; did you mean"):
        judged("open_clip:ViT-B-31")
    with pytest.raises(ConfigError, match=r"neither a file nor a tag of this model; its tags: .*openai"):
        judged("open_clip:ViT-B-32,laion3b")
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="open_clip cannot load it"):
        judged(f"open_clip:tiny,{tmp_path / 'weights.pt'}")


def test_settings_of_packed_models_are_refused():
    for setting, value in (("upscale", False), ("keep", 0.5)):
        with pytest.raises(ConfigError, match=f"{setting}: open_clip:tiny takes every image at one size"):
            judged("open_clip:tiny").preparation(ImageConfig(**{setting: value}))


def clip_benchmark_scores(spec: str, folder: Path, monkeypatch) -> dict[str, float]:
    """CLIP_benchmark's own loading, embedding and metrics, on the CPU in fp32."""
    from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    # It makes numbers of arrays with one element, which numpy 2.4 no longer lets float() do.
    monkeypatch.setattr(zeroshot_classification, "float", lambda array: array.item(), raising=False)
    name, _, weights = spec.removeprefix("open_clip:").partition(",")
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=weights)
    tokenizer = open_clip.get_tokenizer(name)
    dataset = build_wds_dataset("any", transform, data_dir=str(folder))
    retrieval = (folder / "dataset_type.txt").is_file()
    collate = {"collation_fn": image_captions_collate_fn} if retrieval else {}
    classes, templates = dataset.classes, dataset.templates
    batches = dataset.batched(32, **collate)
    batches.classes = classes
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    model.eval()
    if retrieval:
        return zeroshot_retrieval.evaluate(
            model, loader, tokenizer, device="cpu", amp=False, recall_k_list=[1, 5, 10]
        )
    return zeroshot_classification.evaluate(
        model, loader, tokenizer, classes, templates, device="cpu", amp=False
    )


def wds_folder(folder: Path, shard: Path, names: list[str] | None) -> Path:
    """A shard as a folder of CLIP_benchmark's exporter."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "test" / "0.tar").symlink_to(shard)
    if names is None:
        (folder / "dataset_type.txt").write_text("retrieval")
    else:
        (folder / "classnames.txt").write_text("\n".join(names))
        (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    return folder


def train_briefly(spec: str, shard: Path, names: list[str], steps: int) -> OpenClipModel:
    """A few steps of CLIP's loss on a labelled shard, so that scores are neither chance nor perfect."""
    model = judged(spec)
    samples = ShardSamples([str(shard)], None, labels=True)
    preparation = model.preparation(ImageConfig())
    picked = [samples[index] for index in range(0, len(samples), max(1, len(samples) // 200))]
    images = torch.stack([preparation.prepare(decode_image(s.image), s.key)[0] for s in picked])
    labels = torch.tensor([sample.label for sample in picked])
    tokens = open_clip.get_tokenizer("tiny")([f"a photo of a {name}." for name in names])
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-3)
    for _ in range(steps):
        logits = (
            10
            * F.normalize(model.module.encode_image(images), dim=-1)
            @ F.normalize(model.module.encode_text(tokens), dim=-1).T
        )
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    return model


def exported(folder: Path) -> str:
    """A model of ours in open_clip's format."""
    text = {"causal": True, "alignment": "left", "context_length": 77, "vocab_size": 49408}
    save_model(built(("learned", "fractional", "sum"), **text), load_tokenizer("open_clip"), folder / "model")
    assert export([str(folder / "model"), str(folder / "out"), "--format", "open_clip"]) == 0
    return f"open_clip:local-dir:{folder / 'out'}"


def test_patches_of_packed_towers_are_counted(tmp_path):
    model = OpenClipModel(exported(tmp_path), ALONE.device, torch.float32)
    grid = math.isqrt(ImageConfig().tokens_per_image)  # the square that an export of no run is for
    assert model.preparation(ImageConfig()).most_tokens == grid**2


@pytest.mark.real_data
@pytest.mark.parametrize("weights", ["random", "trained", "exported"])
def test_scores_are_clip_benchmark_s(real_shards, tmp_path, monkeypatch, weights):
    """acc1, acc5, mean per-class recall and recalls at 1, 5 and 10, on the same shards."""
    pytest.importorskip("clip_benchmark", reason="pip install 'navit-clip[peers]'")
    names = ["tench", "dog", "cassette", "saw", "church", "horn", "truck", "pump", "golf ball", "parachute"]
    if weights == "exported":
        spec = exported(tmp_path)
    else:
        steps = 25 if weights == "trained" else 0
        model = train_briefly("open_clip:tiny", real_shards / "imagenette224-train.tar", names, steps)
        torch.save(model.module.state_dict(), tmp_path / "weights.pt")
        spec = f"open_clip:tiny,{tmp_path / 'weights.pt'}"
    folders = {
        "zeroshot_classification": wds_folder(tmp_path / "a", real_shards / "imagenette224-val.tar", names),
        "zeroshot_retrieval": wds_folder(tmp_path / "b", real_shards / "flickr8k-small-test.tar", None),
    }
    for task, folder in folders.items():
        output = tmp_path / f"{task}.jsonl"
        flags = ["--model", spec, "--dataset", "wds/any", "--dataset_root", str(folder), "--task", task]
        flags += ["--output", str(output), "--vectors", str(tmp_path / "vectors"), "--num_workers", "0"]
        assert main(flags) == 0
        (record,) = read_records(output)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # webdataset's, on data that it is given no splitter for
            theirs = clip_benchmark_scores(spec, folder, monkeypatch)
        assert record["pretrained"] == spec.partition(":" if weights == "exported" else ",")[2]
        assert {name: record["metrics"][name] for name in theirs} == pytest.approx(theirs, abs=1e-7)
        if weights == "trained" and task == "zeroshot_classification":
            assert 0.15 < record["metrics"]["acc1"] < 0.9
