"""Diagnostics: how signals pass a pruned network, and what of it is left."""

from .conservation import Conservation as Conservation
from .conservation import LayerFlow as LayerFlow
from .conservation import StreamFlow as StreamFlow
from .conservation import conservation as conservation
from .costs import Costs as Costs
from .costs import costs as costs
from .isometry import Repair as Repair
from .isometry import approximate_isometry_ as approximate_isometry_
from .isometry import isometry_residuals as isometry_residuals
from .jacobians import Spectrum as Spectrum
from .jacobians import jacobian_spectrum as jacobian_spectrum
from .jacobians import layer_spectra as layer_spectra
from .jacobians import spectra_by_sparsity as spectra_by_sparsity
from .mean_field import mean_field_chi as mean_field_chi
from .mean_field import mean_field_gain as mean_field_gain
from .paths import Collapse as Collapse
from .paths import CriticalCompression as CriticalCompression
from .paths import collapse as collapse
from .paths import critical_compression as critical_compression
from .paths import effective_masks as effective_masks
from .paths import maximal_compression as maximal_compression
