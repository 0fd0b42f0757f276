"""The towers: packed images and packed captions -> embeddings."""

from navit_clip.model.attention import choose_backend, packed_attention
from navit_clip.model.clip import TOWERS, ClipConfig, Tower, TwoTowers
from navit_clip.model.image_tower import ImageTower, ImageTowerConfig
from navit_clip.model.positions import PositionConfig
from navit_clip.model.text_tower import TextTower, TextTowerConfig

__all__ = [
    "TOWERS",
    "ClipConfig",
    "ImageTower",
    "ImageTowerConfig",
    "PositionConfig",
    "TextTower",
    "TextTowerConfig",
    "Tower",
    "TwoTowers",
    "choose_backend",
    "packed_attention",
]
