"""Criteria: what is a weight worth? One file each, ``score = criterion(model, params)``."""

from .base import Criterion
from .exact import ExactSaliency
from .fisher import Fisher
from .grasp import GraSP
from .lamp import LAMP
from .magnitude import Magnitude
from .movement import Movement, SignPreserved
from .obd import OBD
from .quadratic_snip import QuadraticSNIP
from .random import Random
from .relative_magnitude import RelativeMagnitude
from .shares import Shares
from .snip import SNIP
from .synaptic import SynapticSaliency
from .synflow import SynFlow
from .taylor import Taylor

__all__ = [
    "Criterion",
    "ExactSaliency",
    "Fisher",
    "GraSP",
    "LAMP",
    "Magnitude",
    "Movement",
    "OBD",
    "QuadraticSNIP",
    "Random",
    "RelativeMagnitude",
    "SNIP",
    "Shares",
    "SignPreserved",
    "SynFlow",
    "SynapticSaliency",
    "Taylor",
]
