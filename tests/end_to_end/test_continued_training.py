"""SigLIP 2 in, more training on one's own shards at native resolution, and out again."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from navit_clip.data import TrainLoader
from navit_clip.distributed import World
from navit_clip.huggingface.importing import main as import_model
from navit_clip.weights import load_model
from tests.foreign_folders import siglip2_folder
from tests.ranks import on_ranks
from tests.training_builders import small_run
from training.config import RunConfig
from training.train import run_training


def run(world: World, config: RunConfig) -> None:
    run_training(config, world)


@torch.no_grad()
def first_loss(config: RunConfig, imported: Path) -> float:
    """The imported model's own loss on the run's first batch, by the definition: SigLIP, equation 1."""
    model, tokenizer = load_model(imported)
    loader = TrainLoader(
        config.data, tokenizer, config.model.image.patch_size, config.model.text.context_length, config.seed
    )
    embeddings = model(next(iter(loader)))
    logits = embeddings.logit_scale * embeddings.image @ embeddings.text.T + embeddings.logit_bias
    labels = 2 * torch.eye(len(logits)) - 1
    return float(-F.logsigmoid(labels * logits).sum() / len(logits))


def test_training_goes_on_from_an_imported_model(tmp_path):
    siglip2_folder(tmp_path / "google")
    imported = tmp_path / "imported"
    import_model([str(tmp_path / "google"), str(imported)])
    config = small_run(
        tmp_path,
        pairs=360,
        tokenizer=str(imported / "tokenizer"),
        model=OmegaConf.to_container(OmegaConf.load(imported / "navit_clip.yaml")),
        init_from={"image": str(imported), "text": str(imported)},
        optimizer={"learning_rate": 3e-3},
        schedule={"warmup_pairs": 0},
    )
    on_ranks(1, run, config)
    rows = [json.loads(line) for line in (Path(config.folder) / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "pairs_per_second" in row]
    assert abs(losses[0] - first_loss(config, imported)) < 1e-4 * losses[0]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
