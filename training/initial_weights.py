"""Towers that a run starts from: those of trained models instead of random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from navit_clip.errors import CheckpointError
from navit_clip.model import TOWERS, Tower, TwoTowers
from navit_clip.tokenizer import Tokenizer, same_tokenizer
from navit_clip.weights import copy_tower, load_model, resolve_model_folder


@dataclass(frozen=True, kw_only=True)
class InitialWeightsConfig:
    """Where towers come from. Resuming a run goes on with the run's own weights instead."""

    image: str = ""
    """Run, checkpoint or model folder that the image tower is taken from; none starts at random."""
    text: str = ""
    """The same for the text tower; the run's tokenizer must be that folder's. Where both towers come from
    one folder, so do t' and b."""
    weight_decay: bool = False
    """Whether weights taken from elsewhere decay; SigLIP's do not (2303.15343)."""

    @property
    def folders(self) -> dict[Tower, str]:
        """The folder of each tower that does not start at random."""
        return {tower: getattr(self, tower) for tower in TOWERS if getattr(self, tower)}

    @property
    def undecayed(self) -> tuple[Tower, ...]:
        """Towers no weight of which decays."""
        return () if self.weight_decay else tuple(self.folders)


def load_initial_weights(config: InitialWeightsConfig, model: TwoTowers, tokenizer: Tokenizer) -> None:
    """Replaces the random weights of the towers that the config names.

    Raises:
        CheckpointError: a folder holds no model, or another one than the run's; says what differs.
    """
    towers_of: dict[Path, list[Tower]] = {}
    for tower, folder in config.folders.items():
        towers_of.setdefault(resolve_model_folder(folder).resolve(), []).append(tower)
    for place, towers in towers_of.items():
        source = load_model(place)
        for tower in towers:
            folder = config.folders[tower]
            if tower == "text":
                _check_same_tokenizer(source.tokenizer, tokenizer, folder)
            copy_tower(source.model, model, tower, where=folder)
        if len(towers) == len(TOWERS):
            model.logit_scale.data.copy_(source.model.logit_scale)
            model.logit_bias.data.copy_(source.model.logit_bias)


def _check_same_tokenizer(found: Tokenizer, expected: Tokenizer, folder: str) -> None:
    if not same_tokenizer(found, expected):
        raise CheckpointError(
            f"init_from.text: {folder} has another tokenizer than this run, so its text tower would read "
            "other words; set tokenizer to the folder tokenizer/ in it"
        )
