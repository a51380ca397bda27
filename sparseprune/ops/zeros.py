"""Is a weight zero where its mask prunes it? Known until either changes, as ``known.py`` has it."""

from __future__ import annotations

from weakref import ref

from torch import Tensor

from . import submask
from .costs import candidates
from .known import Memory, state_of

CHUNK = 1 << 20  # elements looked at before the next decision to go on; their bits stay in the cache

_zeros = Memory()


def is_zero_outside(weight: Tensor, words: Tensor) -> bool:
    """Is every pruned slot of ``weight`` zero (so that a dense product may read it)? NaN is not."""
    states = state_of(weight), state_of(words)
    found = _zeros.get(weight, states) if all(states) else None
    if found is not None and found[0]() is words:
        return found[1]
    zero = _look(weight, words)
    if all(states):
        _zeros.put(weight, states, (ref(words), zero))
    return zero


def _look(weight: Tensor, words: Tensor) -> bool:
    weight, words = weight.detach(), words.contiguous()
    backend = "native" if weight.is_cpu and "native" in candidates(weight.dtype) else "auto"
    if weight.numel() <= CHUNK:
        return submask.is_zero_outside(weight.flatten(1).contiguous(), words, backend=backend)
    rows = max(1, CHUNK // weight[0].numel())
    parts = zip(weight.split(rows), words.split(rows), strict=True)
    return all(submask.is_zero_outside(part.flatten(1).contiguous(), bits, backend=backend) for part, bits in parts)
