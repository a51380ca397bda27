"""Criteria: what is a weight worth? One file each, ``score = criterion(model, params)``."""

from .base import Criterion
from .grasp import GraSP
from .magnitude import Magnitude
from .random import Random
from .snip import SNIP
from .synflow import SynFlow

__all__ = ["Criterion", "GraSP", "Magnitude", "Random", "SNIP", "SynFlow"]
