"""Embeddings of all ranks -> one contrastive loss: SigLIP's sigmoid, or CLIP's softmax."""

from navit_clip.loss.contrastive import LossConfig, contrastive_loss

__all__ = ["LossConfig", "contrastive_loss"]
