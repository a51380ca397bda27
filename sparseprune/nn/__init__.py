"""Layers that hold a mask: :class:`SparseLinear`, :class:`SparseConv2d`, and a model's way there and back."""

from .base import SparseLayer as SparseLayer
from .conv import SparseConv2d as SparseConv2d
from .convert import densify as densify
from .convert import sparsify as sparsify
from .dense_gradients import dense_gradients as dense_gradients
from .explain import Explanation as Explanation
from .explain import explain as explain
from .linear import SparseLinear as SparseLinear
from .semi_structured import to_semi_structured as to_semi_structured
from .state import dense_state_dict as dense_state_dict
from .state import held_masks as held_masks
from .storage import set_storage as set_storage
