"""What is known of a mask, or of a weight under its mask, until either changes: looked up once, not at every call.

A change is seen by the tensor's version, as autograd sees it, or by its address. Writes through ``tensor.data`` show in
neither.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import ref

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .mask_bits import count_mask, pack_mask

CHUNK = 1 << 20  # elements looked at before the next decision to go on; their bits stay in the cache


class _Zeros(NamedTuple):
    """Whether a weight is zero outside a mask, and for which state of the two this was found."""

    weight: tuple[int, int]
    words: Any  # a weak reference: an address alone may be another tensor's by now
    version: tuple[int, int]
    zero: bool


_counts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_zeros: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def count_kept(words: Tensor) -> int:
    """The set bits of a mask's packed words."""
    state = _state(words)
    found = _counts.get(words) if state else None
    if found is None or found[0] != state:
        found = (state, int(count_mask(words).sum()))
        if state:
            _counts[words] = found
    return found[1]


def is_zero_outside(weight: Tensor, words: Tensor) -> bool:
    """Is every pruned slot of ``weight`` zero (so that a dense product may read it)? NaN is not."""
    state, version = _state(weight), _state(words)
    found = _zeros.get(weight) if state and version else None
    if found is None or found.words() is not words or (found.weight, found.version) != (state, version):
        found = _Zeros(state, ref(words), version, _look(weight, words))
        if state and version:
            _zeros[weight] = found
    return found.zero


def _state(tensor: Tensor) -> tuple[int, int] | None:
    """What changes with a tensor's values; inference tensors have no version."""
    return None if tensor.is_inference() else (tensor._version, tensor.data_ptr())


def _look(weight: Tensor, words: Tensor) -> bool:
    rows = max(1, CHUNK // max(1, weight[:1].numel()))
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows]
        nonzero = pack_mask(part.bool().reshape(part.shape[0], -1))  # seven times as fast as part != 0
        if (nonzero & ~words[start : start + rows]).any():
            return False
    return True
