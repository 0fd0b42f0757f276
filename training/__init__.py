"""Training: a batch stream and a model in, a run folder with metrics and checkpoints out."""
