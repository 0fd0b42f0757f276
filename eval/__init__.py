"""Evaluation: a model and data sets in, scores and a report out."""
