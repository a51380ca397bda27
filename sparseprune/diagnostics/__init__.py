"""Diagnostics: how signals pass a pruned network, and what of it is left."""

from .jacobians import Spectrum as Spectrum
from .jacobians import jacobian_spectrum as jacobian_spectrum
from .jacobians import layer_spectra as layer_spectra
from .jacobians import spectra_by_sparsity as spectra_by_sparsity
