"""SigLIP 2 in, more training on one's own shards at native resolution, and out again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from navit_clip.batch import Batch
from navit_clip.data import TrainLoader
from navit_clip.distributed import World
from navit_clip.huggingface.importing import main as import_model
from navit_clip.model import TwoTowers
from navit_clip.weights import load_model, resolve_model_folder
from tests.foreign_folders import siglip2_folder
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.config import RunConfig
from training.train import run_training


def run(world: World, config: RunConfig) -> None:
    run_training(config, world)


def continued(
    folder: Path, towers: tuple[str, ...] = ("image", "text"), **settings
) -> tuple[RunConfig, Path]:
    """A run on from those towers of an imported SigLIP 2, and the model folder of that."""
    torch.manual_seed(0)  # of the weights that the model has
    siglip2_folder(folder / "google")
    imported = folder / "imported"
    import_model([str(folder / "google"), str(imported)])
    config = small_run(
        folder,
        pairs=1200,
        tokenizer=str(imported / "tokenizer"),
        model=OmegaConf.to_container(OmegaConf.load(imported / "navit_clip.yaml")),
        init_from={tower: str(imported) for tower in towers},
        # Some twenty pairs a batch: with a few, a loss says more of how many they are than of the model.
        data={
            "shards": [str(folder / "shards" / "*.tar")],
            "resolution": {"min_side": 16, "max_side": 24},
            "tokens_per_batch": 512,
            "lookahead": 8,
            "num_workers": 0,
        },
        optimizer={"learning_rate": 1e-2, **settings.pop("optimizer", {})},
        schedule={"warmup_pairs": 0},
        **settings,
    )
    return config, imported


def losses_of(config: RunConfig) -> list[float]:
    rows = [json.loads(line) for line in (Path(config.folder) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "pairs_per_second" in row]


def first_batches(config: RunConfig, tokenizer, ranks: int = 1) -> list[Batch]:
    sizes = config.model.image.patch_size, config.model.text.context_length
    return [
        next(iter(TrainLoader(config.data, tokenizer, *sizes, config.seed, rank, ranks)))
        for rank in range(ranks)
    ]


@torch.no_grad()
def loss_of(model: TwoTowers, batches: list[Batch]) -> float:
    """A model's loss on all pairs of the batches, by the definition: SigLIP, equation 1."""
    parts = [model(batch) for batch in batches]
    image, text = (torch.cat([getattr(part, name) for part in parts]) for name in ("image", "text"))
    logits = parts[0].logit_scale * image @ text.T + parts[0].logit_bias
    labels = 2 * torch.eye(len(logits)) - 1
    return float(-F.logsigmoid(labels * logits).sum() / len(logits))


def test_training_goes_on_from_an_imported_model(tmp_path):
    config, imported = continued(tmp_path)
    on_ranks(1, run, config)
    losses = losses_of(config)
    model, tokenizer = load_model(imported)
    batches = first_batches(config, tokenizer)
    first = loss_of(model, batches)
    assert abs(losses[0] - first) < 1e-4 * losses[0]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    trained, _ = load_model(resolve_model_folder(config.folder))
    assert loss_of(trained, batches) < 0.6 * first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("towers", "stage"),
    [(("image",), 1), (("text",), 2), (("image", "text"), 2), (("image", "text"), 3)],
    ids=["image-1", "text-2", "both-2", "both-3"],
)
def test_training_goes_on_from_either_tower_at_every_stage(tmp_path, towers, stage):
    """On two ranks, with layer decay: first the loss of the imported towers beside what was drawn."""
    slower_below = {tower: {"layer_decay": 0.8} for tower in towers}
    config, imported = continued(
        tmp_path, towers, optimizer=slower_below, engine={"precision": "fp32", "zero_stage": stage}
    )
    on_ranks(2, run, config)
    losses = losses_of(config)
    torch.manual_seed(config.seed)
    expected = TwoTowers(config.model).eval()
    source, tokenizer = load_model(imported)
    prefixes = (*(f"{tower}." for tower in towers), *(["logit_"] if len(towers) == 2 else []))
    weights = {name: weight for name, weight in source.state_dict().items() if name.startswith(prefixes)}
    expected.load_state_dict(weights, strict=False)
    batches = first_batches(config, tokenizer, ranks=2)
    first = loss_of(expected, batches)
    assert abs(losses[0] - first) < 1e-4 * losses[0]
    trained, _ = load_model(resolve_model_folder(config.folder))
    assert loss_of(trained, batches) < first
