"""SparseLayer: a layer whose weight has a packed mask, and its storage."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..ops.bilinear import Watch
from ..ops.bitmask import BitMask, as_rows
from ..ops.packed_values import pack_values, unpack_values
from ..ops.submask import zero_pruned_

if TYPE_CHECKING:
    from .explain import Explanation

STORAGES = ("owned", "overlay", "packed")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

LayerT = TypeVar("LayerT", bound="SparseLayer")


class SparseLayer(nn.Module):
    """What the sparse layers share: the mask, its storage, and how the two are saved and loaded.

    The storage is *owned* at first: ``weight`` is the plain Parameter of the dense layer, kept exactly zero at
    pruned slots. Its gradient is exactly zero there, so every optimizer that works entry by entry (SGD, Adam, AdamW,
    RMSprop, ..., with momentum, weight decay, clipping, foreach or fused) leaves those slots and its own
    state for them at zero. Whatever else is written there reaches no output and no gradient: a dense product reads
    the weight only while it is known to be zero there, which is looked up again after each change (one that is made
    through ``weight.data`` cannot be seen). The other storages are described at :func:`set_storage`.

    ``state_dict()`` holds the dense layer's keys and ``weight_mask``; a packed layer has ``weight_values`` and
    ``weight_shape`` in place of ``weight``. Each storage loads the checkpoints of all, and dense ones, strictly too:
    a dense one keeps the mask, a sparse one brings its own. For the way back, see :func:`dense_state_dict`. On the
    meta device the mask has no values, and only a sparse checkpoint can give it any.

    ``torch.optim.swa_utils.AveragedModel`` must keep its default ``use_buffers=False``: bits have no average.

    Attributes:
        weight: the dense layer's Parameter; of a packed layer a dense copy, which gradients pass through.
        weight_values: of a packed layer, the Parameter (kept,).
        storage: "owned", "overlay" or "packed"; change it with :func:`set_storage` only.
        weight_mask: int32 buffer, the packed words of the mask (see :class:`BitMask`); change it with
            :meth:`set_mask` only.
        dense_gradient: where backward adds a gradient at every slot, or None, where nobody wants one;
            see :func:`dense_gradients`.
    """

    dense_type: ClassVar[type[nn.Module]]
    dense_gradient: Watch | None = None
    storage: str = "owned"

    weight_mask: Tensor

    @classmethod
    def from_dense(cls: type[LayerT], layer: nn.Module, mask: BitMask | Tensor) -> LayerT:
        """The sparse twin of a dense layer: the same Parameter objects, mode and hooks, and a mask.

        The weight is shared, so the dense layer's weight becomes zero at the pruned slots, too.

        Args:
            layer: an instance of exactly the dense class.
            mask: BitMask or bool tensor of the weight's shape, on its device; True = keep.

        Raises:
            TypeError: ``layer`` is of another class, or ``mask`` of another type.
            ValueError: the weight is computed by something else or of an exotic dtype, or the mask's shape or
                device is not the weight's.
        """
        if type(layer) is not cls.dense_type:
            raise TypeError(f"layer must be exactly a {cls.dense_type.__name__}, got {type(layer).__name__}")
        if reason := refusal(layer):
            raise ValueError(f"layer must be a plain {cls.dense_type.__name__}, got one {reason}")
        mask = checked(mask, layer.weight.shape, layer.weight.device)
        twin = cls.__new__(cls)
        # One level deep: the twin gets dictionaries of its own, which hold the same parameters and hooks.
        twin.__dict__ = {k: copy.copy(v) if isinstance(v, (dict, set)) else v for k, v in vars(layer).items()}
        twin._own(mask)
        return twin

    @property
    def mask(self) -> BitMask:
        """A copy of the mask: which weights are kept."""
        # Checked wherever it came from (constructor, set_mask, load_state_dict): no wait for a GPU here.
        return BitMask._trusted(self.weight_mask.clone(), self.dense_shape)

    @property
    def parameter(self) -> nn.Parameter:
        """``weight``, or ``weight_values`` of a packed layer."""
        return self._parameters["weight_values" if self.storage == "packed" else "weight"]

    @property
    def dense_shape(self) -> torch.Size:
        """The shape of the dense weight."""
        raise TypeError(f"{type(self).__name__} must define dense_shape")

    def __getattr__(self, name: str) -> Any:
        # Asked for what is not found otherwise: a packed layer has no such parameter.
        if name == "weight" and self.storage == "packed":
            return unpack_values(self.weight_values, self.mask)
        return super().__getattr__(name)

    def set_mask(self, mask: BitMask | Tensor) -> None:
        """Replace the mask in place: no new tensor, so compiled code stays valid.

        Slots that the new mask prunes are zeroed in ``weight`` and ``weight.grad``; slots that it brings back
        start from zero, or from what an overlay holds. An optimizer's momentum is out of reach here: ``sparsify(model,
        masks, optimizer=optimizer)``. The Parameter of a packed layer stays the same object with as many values as are
        kept: while their number changes, an optimizer that has stepped must be given, and compiled code is compiled
        anew.

        Args:
            mask: BitMask or bool tensor of the weight's shape, on its device; True = keep.

        Raises:
            TypeError: ``mask`` is of another type.
            ValueError: its shape or device is not the weight's, or the weight is packed and sharded.
        """
        from .storage import check_resizable, set_masks  # which know this class

        mask = checked(mask, self.dense_shape, self.weight_mask.device)
        check_resizable(self)
        set_masks([self], mask, None)

    @property
    def density(self) -> float:
        """Kept / all."""
        return self.mask.density

    def explain(self, input_shape: Sequence[int], *, measured: bool = False) -> list[Explanation]:
        """Which implementation runs forward and both gradients for an input of this shape, and why: see ``explain``."""
        from .explain import explain  # which knows this class

        return explain(self, input_shape, measured=measured)

    def reset_parameters(self) -> None:
        """Draw the weights anew; mask and storage stay."""
        from .storage import store

        storage = self.storage
        if storage == "packed":
            store([self], "owned", None)
        super().reset_parameters()
        if "weight_mask" in self._buffers:  # the dense constructor calls this before there is a mask
            self._zero_outside(self.mask)
            store([self], storage, None)

    def extra_repr(self) -> str:
        dense = super().extra_repr()
        storage = "" if self.storage == "owned" else f", storage={self.storage}"
        return (dense if self.weight_mask.is_meta else f"{dense}, density={self.density:.4g}") + storage

    def _own(self, mask: BitMask) -> None:
        """Become the holder of ``mask``, which was checked."""
        self.register_buffer("weight_mask", mask.words.clone())
        self._zero_outside(mask)

    def _zero_outside(self, mask: BitMask) -> None:
        if self.storage == "owned":
            zero_outside(mask, self.weight, self.weight.grad)

    def _rename(self, name: str) -> None:
        """Hold the weight's Parameter as ``name``, in its place among the others."""
        other = {"weight": "weight_values", "weight_values": "weight"}[name]
        parameters = [(name if key == other else key, value) for key, value in self._parameters.items()]
        self._parameters.clear()
        self._parameters.update(parameters)
        if name == "weight":
            self._buffers.pop("weight_shape", None)
        else:
            shape = torch.tensor(self.dense_shape, device=self.weight_mask.device)
            self.register_buffer("weight_shape", shape)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        load = super()._load_from_state_dict
        rest = (prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        mask_key, weight_key = prefix + "weight_mask", prefix + "weight"
        if mask_key not in state_dict and self.weight_mask.is_meta:
            load(state_dict, *rest)  # a strict load reports the missing mask
            return
        try:
            mask = BitMask(state_dict[mask_key], self.dense_shape) if mask_key in state_dict else self.mask
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{mask_key} must be the packed mask of {weight_key}: {error}")
            return
        # A dense checkpoint says nothing about the mask: the present one stays.
        state_dict.setdefault(mask_key, mask.words)
        try:
            self._take_weight(state_dict, prefix, mask)
        except ValueError as error:
            error_msgs.append(f"size mismatch for {weight_key}: {error}")
            return
        load(state_dict, *rest)
        if not self.weight_mask.is_meta:
            self._zero_outside(self.mask)

    def _take_weight(self, state_dict: dict[str, Any], prefix: str, mask: BitMask) -> None:
        """Replace the entries of any storage by those of this one; the tensors are copies, as they may be assigned."""
        shape, values = (state_dict.pop(prefix + name, None) for name in ("weight_shape", "weight_values"))
        weight = state_dict.get(prefix + "weight")
        if self.storage != "packed":
            if isinstance(values, Tensor):
                state_dict[prefix + "weight"] = unpack_values(values.detach(), mask.to(values.device))
            elif isinstance(weight, Tensor) and weight.shape == mask.shape and self.storage == "owned":
                pruned = ~mask.to(weight.device).to_bool()
                state_dict[prefix + "weight"] = weight.detach().masked_fill(pruned, 0)
            return
        state_dict[prefix + "weight_shape"] = self.weight_shape if shape is None else shape
        if isinstance(state_dict.pop(prefix + "weight", None), Tensor):
            values = pack_values(weight.detach(), mask.to(weight.device))
        if isinstance(values, Tensor):
            state_dict[prefix + "weight_values"] = values
            if values.shape != (kept := mask.count(),):
                raise ValueError(f"weight_values must have shape {(kept,)}, got {tuple(values.shape)}")
            if values.shape != self.weight_values.shape:
                replace_values(self.weight_values, self.weight_values.new_zeros(values.shape))


def checked(mask: BitMask | Tensor, shape: torch.Size, device: torch.device, argument: str = "mask") -> BitMask:
    """``mask`` as a BitMask that fits a weight.

    Raises:
        TypeError: it is neither a BitMask nor a bool tensor.
        ValueError: its shape or device is not the weight's.
    """
    if not isinstance(mask, BitMask) and not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
        kind = f"a {mask.dtype} tensor" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{argument} must be a BitMask or a bool tensor, got {kind}")
    if mask.shape != shape:
        raise ValueError(f"{argument} must have its weight's shape {tuple(shape)}, got {tuple(mask.shape)}")
    if mask.device != device:
        raise ValueError(
            f"{argument} must be on its weight's device {device}, got {mask.device}; move it with .to({str(device)!r})"
        )
    return mask if isinstance(mask, BitMask) else BitMask.from_bool(mask)


def refusal(layer: nn.Module) -> str | None:
    """Why a layer of the right class cannot have its forward replaced, or None."""
    if isinstance(layer, SparseLayer) and layer.storage == "packed":
        return None
    if "weight" not in layer._parameters:
        return "whose weight is computed from other tensors (a parametrization, torch.nn.utils.prune, a norm)"
    if layer.weight.dtype not in FLOATING:
        return f"whose weight is {layer.weight.dtype}, not float16, bfloat16, float32 or float64"
    if "forward" in vars(layer):
        return "whose forward was replaced"
    if not isinstance(layer, SparseLayer) and hasattr(layer, "weight_mask"):
        return "which has an attribute weight_mask already"
    return None


def replace_values(parameter: nn.Parameter, values: Tensor) -> None:
    """Give a Parameter values of another shape; it has no gradient then."""
    parameter.grad = None
    if values.shape != parameter.shape and not (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        # A loss that is still there keeps autograd's node of the old shape, which only a change of the dtype takes from
        # the Parameter. Under DDP that node averages gradients, so there a change of shape has to fail in backward.
        other = torch.float64 if values.dtype == torch.float16 else torch.float16
        parameter.data = values.new_empty(0, dtype=other)
    parameter.data = values


@torch.no_grad()
def zero_outside(mask: BitMask, *tensors: Tensor | None) -> None:
    """Write zero into the pruned slots of tensors of the mask's shape, whatever they hold."""
    for tensor in tensors:
        if tensor is None:
            continue
        if in_rows(tensor):
            zero_pruned_(tensor.view(as_rows(mask.shape)), mask)
        else:
            tensor.masked_fill_(placed_as(~mask.to_bool(), tensor), 0)


def in_rows(tensor: Tensor) -> bool:
    """Can an op of ours walk it by its mask's bits? Not shards, tensors that are traced, or other layouts than rows."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_contiguous() and not tensor.is_meta


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor, gathered from its ranks; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def placed_as(whole: Tensor, tensor: Tensor) -> Tensor:
    """``whole``, which every rank has, as the shards that a DTensor's ranks hold; else as it is."""
    if not hasattr(tensor, "placements"):
        return whole
    from torch.distributed.tensor import distribute_tensor  # slow to import, and in use by now

    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
