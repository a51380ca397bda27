"""Criteria: what is a weight worth? One file each, ``score = criterion(model, params)``."""

from .base import Criterion
from .exact import ExactSaliency
from .fisher import Fisher
from .fourier import FourierAmplitude
from .grasp import GraSP
from .lamp import LAMP
from .magnitude import Magnitude
from .movement import Movement, SignPreserved
from .obd import OBD
from .obs import OBS
from .quadratic_snip import QuadraticSNIP
from .random import Random
from .relative_magnitude import RelativeMagnitude
from .shares import Shares
from .skeletonization import Skeletonization
from .snip import SNIP
from .synaptic import SynapticSaliency
from .synflow import SynFlow
from .taylor import Taylor
from .trajectory import KarninSensitivity
from .variance_nullity import VarianceNullity

__all__ = [
    "Criterion",
    "ExactSaliency",
    "Fisher",
    "FourierAmplitude",
    "GraSP",
    "KarninSensitivity",
    "LAMP",
    "Magnitude",
    "Movement",
    "OBD",
    "OBS",
    "QuadraticSNIP",
    "Random",
    "RelativeMagnitude",
    "SNIP",
    "Shares",
    "SignPreserved",
    "Skeletonization",
    "SynFlow",
    "SynapticSaliency",
    "Taylor",
    "VarianceNullity",
]
