"""Whole runs as data: a YAML file or a dictionary that says what to prune, how to train and how often."""

from .recipe import Recipe as Recipe
