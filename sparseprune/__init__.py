"""Prune large neural networks at the speed of the hardware.

>>> import sparseprune as sp
>>> masks = sp.prune(torch.nn.Linear(64, 10), sp.Magnitude(), sparsity=0.9)
>>> masks.count()
64
"""

from importlib.metadata import version as _version

from . import data as data
from . import diagnostics as diagnostics
from . import models as models
from . import recipes as recipes
from . import training as training
from .allocation import erk as erk
from .allocation import uniform as uniform
from .criteria import LAMP as LAMP
from .criteria import OBD as OBD
from .criteria import OBS as OBS
from .criteria import SNIP as SNIP
from .criteria import ExactSaliency as ExactSaliency
from .criteria import Fisher as Fisher
from .criteria import FourierAmplitude as FourierAmplitude
from .criteria import GraSP as GraSP
from .criteria import KarninSensitivity as KarninSensitivity
from .criteria import Magnitude as Magnitude
from .criteria import Movement as Movement
from .criteria import QuadraticSNIP as QuadraticSNIP
from .criteria import Random as Random
from .criteria import RelativeMagnitude as RelativeMagnitude
from .criteria import Shares as Shares
from .criteria import SignPreserved as SignPreserved
from .criteria import Skeletonization as Skeletonization
from .criteria import SynapticSaliency as SynapticSaliency
from .criteria import SynFlow as SynFlow
from .criteria import Taylor as Taylor
from .criteria import VarianceNullity as VarianceNullity
from .criteria.skeletonization import linear_error as linear_error
from .criteria.trajectory import Trajectory as Trajectory
from .diagnostics import compact as compact
from .masks import BitMask as BitMask
from .masks import Masks as Masks
from .nn import SparseConv2d as SparseConv2d
from .nn import SparseLinear as SparseLinear
from .nn import dense_gradients as dense_gradients
from .nn import dense_state_dict as dense_state_dict
from .nn import densify as densify
from .nn import explain as explain
from .nn import held_masks as held_masks
from .nn import set_storage as set_storage
from .nn import sparsify as sparsify
from .nn import to_semi_structured as to_semi_structured
from .ops.calibration import calibrate as calibrate
from .ops.distributed_topk import distributed_topk_mask as distributed_topk_mask
from .ops.group_topk_mask import group_topk_mask as group_topk_mask
from .ops.masked_conv2d import masked_conv2d as masked_conv2d
from .ops.masked_linear import masked_linear as masked_linear
from .ops.order_statistics import kth_value as kth_value
from .ops.order_statistics import quantile as quantile
from .ops.packed_conv2d import packed_conv2d as packed_conv2d
from .ops.packed_linear import packed_linear as packed_linear
from .ops.packed_values import pack_values as pack_values
from .ops.packed_values import unpack_values as unpack_values
from .ops.products import Product as Product
from .ops.straight_through import straight_through_topk as straight_through_topk
from .ops.topk_mask import topk_mask as topk_mask
from .patterns import NM as NM
from .patterns import Global as Global
from .patterns import LayerWise as LayerWise
from .pruning import prune as prune
from .pruning import prune_many as prune_many
from .recipes import Recipe as Recipe
from .schedules import cubic as cubic
from .schedules import exponential as exponential
from .schedules import linear as linear
from .schedules import one_shot as one_shot
from .summary import summarize as summarize
from .surgery import compensate as compensate
from .training import attach as attach

__version__ = _version("sparseprune")
