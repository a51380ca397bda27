"""SparseLayer: a layer whose ``weight`` has a packed mask and is exactly zero at its pruned slots."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..ops.bitmask import BitMask

if TYPE_CHECKING:
    from .explain import Explanation

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

LayerT = TypeVar("LayerT", bound="SparseLayer")


class SparseLayer(nn.Module):
    """What the sparse layers share: the mask, its storage, and how the two are saved and loaded.

    The storage is *owned*: ``weight`` is the plain Parameter of the dense layer, kept exactly zero at pruned
    slots. Its gradient is exactly zero there, so every optimizer that works entry by entry (SGD, Adam, AdamW,
    RMSprop, ..., with momentum, weight decay, clipping, foreach or fused) leaves those slots and its own
    state for them at zero. The layer still never reads a pruned slot: whatever is written there by hand
    reaches no output and no gradient.

    ``state_dict()`` holds the dense layer's keys and ``weight_mask``. Loading a dense checkpoint, strictly
    too, keeps the mask and zeroes what it prunes; loading a sparse one takes both weight and mask from it.
    For the way back, see :func:`dense_state_dict`. On the meta device the mask has no values, and only a
    sparse checkpoint can give it any.

    ``torch.optim.swa_utils.AveragedModel`` must keep its default ``use_buffers=False``: bits have no average.

    Attributes:
        weight: the dense layer's Parameter.
        weight_mask: int32 buffer, the packed words of the mask (see :class:`BitMask`); change it with
            :meth:`set_mask` only.
        dense_gradient: where backward adds the weight's gradient at every slot, or None, where nobody wants it;
            see :func:`dense_gradients`.
    """

    dense_type: ClassVar[type[nn.Module]]
    dense_gradient: Tensor | None = None

    weight: Tensor
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
        mask = checked(mask, layer.weight)
        twin = cls.__new__(cls)
        # One level deep: the twin gets dictionaries of its own, which hold the same parameters and hooks.
        twin.__dict__ = {k: copy.copy(v) if isinstance(v, (dict, set)) else v for k, v in vars(layer).items()}
        twin._own(mask)
        return twin

    @property
    def mask(self) -> BitMask:
        """A copy of the mask: which weights are kept."""
        # Checked wherever it came from (constructor, set_mask, load_state_dict): no wait for a GPU here.
        return BitMask._trusted(self.weight_mask.clone(), self.weight.shape)

    def set_mask(self, mask: BitMask | Tensor) -> None:
        """Replace the mask in place: no new tensor, so compiled code stays valid.

        Slots that the new mask prunes are zeroed in ``weight`` and ``weight.grad``; slots that it brings back
        start from zero. An optimizer's momentum is out of reach here: ``sparsify(model, masks,
        optimizer=optimizer)``.

        Args:
            mask: BitMask or bool tensor of the weight's shape, on its device; True = keep.

        Raises:
            TypeError: ``mask`` is of another type.
            ValueError: its shape or device is not the weight's.
        """
        mask = checked(mask, self.weight)
        held = self.mask & mask
        with torch.no_grad():
            self.weight_mask.copy_(mask.words)
        self._zero_outside(held)

    @property
    def density(self) -> float:
        """Kept / all."""
        return self.mask.density

    def explain(self, input_shape: Sequence[int], *, measured: bool = False) -> list[Explanation]:
        """Which implementation runs forward and both gradients for an input of this shape, and why: see ``explain``."""
        from .explain import explain  # which knows this class

        return explain(self, input_shape, measured=measured)

    def reset_parameters(self) -> None:
        """Draw the weights anew; the mask stays."""
        super().reset_parameters()
        if "weight_mask" in self._buffers:  # the dense constructor calls this before there is a mask
            self._zero_outside(self.mask)

    def extra_repr(self) -> str:
        dense = super().extra_repr()
        return dense if self.weight_mask.is_meta else f"{dense}, density={self.density:.4g}"

    def _own(self, mask: BitMask) -> None:
        """Become the holder of ``mask``, which was checked."""
        self.register_buffer("weight_mask", mask.words.clone())
        self._zero_outside(mask)

    def _zero_outside(self, mask: BitMask) -> None:
        zero_outside(mask, self.weight, self.weight.grad)

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
            mask = BitMask(state_dict[mask_key], self.weight.shape) if mask_key in state_dict else self.mask
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{mask_key} must be the packed mask of {weight_key}: {error}")
            return
        # A dense checkpoint says nothing about the mask: the present one stays.
        state_dict.setdefault(mask_key, mask.words)
        weight = state_dict.get(weight_key)
        if isinstance(weight, Tensor) and weight.shape == mask.shape:
            # A copy, since with assign=True the tensor itself becomes the weight and is still the caller's.
            pruned = ~mask.to(weight.device).to_bool()
            state_dict[weight_key] = weight.detach().masked_fill(pruned, 0)
        load(state_dict, *rest)
        if not self.weight_mask.is_meta:
            self._zero_outside(self.mask)


def checked(mask: BitMask | Tensor, weight: Tensor, argument: str = "mask") -> BitMask:
    """``mask`` as a BitMask that fits ``weight``.

    Raises:
        TypeError: it is neither a BitMask nor a bool tensor.
        ValueError: its shape or device is not the weight's.
    """
    if not isinstance(mask, BitMask) and not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
        kind = f"a {mask.dtype} tensor" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{argument} must be a BitMask or a bool tensor, got {kind}")
    if mask.shape != weight.shape:
        raise ValueError(f"{argument} must have its weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}")
    if mask.device != weight.device:
        raise ValueError(
            f"{argument} must be on its weight's device {weight.device}, got {mask.device}; "
            f"move it with .to({str(weight.device)!r})"
        )
    return mask if isinstance(mask, BitMask) else BitMask.from_bool(mask)


def refusal(layer: nn.Module) -> str | None:
    """Why a layer of the right class cannot have its forward replaced, or None."""
    if "weight" not in layer._parameters:
        return "whose weight is computed from other tensors (a parametrization, torch.nn.utils.prune, a norm)"
    if layer.weight.dtype not in FLOATING:
        return f"whose weight is {layer.weight.dtype}, not float16, bfloat16, float32 or float64"
    if "forward" in vars(layer):
        return "whose forward was replaced"
    if not isinstance(layer, SparseLayer) and hasattr(layer, "weight_mask"):
        return "which has an attribute weight_mask already"
    return None


@torch.no_grad()
def zero_outside(mask: BitMask, *tensors: Tensor | None) -> None:
    """Write zero into the pruned slots of tensors of the mask's shape, whatever they hold."""
    pruned = ~mask.to_bool()
    for tensor in tensors:
        if tensor is not None:
            tensor.masked_fill_(_placed_as(pruned, tensor), 0)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor, gathered from its ranks; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _placed_as(whole: Tensor, tensor: Tensor) -> Tensor:
    """``whole``, which every rank has, as the shards that a DTensor's ranks hold; else as it is."""
    if not hasattr(tensor, "placements"):
        return whole
    from torch.distributed.tensor import distribute_tensor  # slow to import, and in use by now

    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
