"""What is known of a mask until it changes: looked up once, not at every call.

A change is seen by the tensor's version, as autograd sees it, or by its address. Writes through ``tensor.data`` show in
neither.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch import Tensor

from .mask_bits import count_mask

State = tuple[int, int]


class Memory:
    """tensor -> what was found of it in a state of it and of what else it depends on.

    By identity, without the keys of ``WeakTensorKeyDictionary``, which cost ten times the look-up at every call.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[ref[Tensor], Any, Any]] = {}

    def get(self, tensor: Tensor, state: Any) -> Any:
        """None if nothing is known."""
        found = self._found.get(id(tensor))
        # The number alone may be another tensor's by now.
        return found[2] if found is not None and found[1] == state and found[0]() is tensor else None

    def put(self, tensor: Tensor, state: Any, value: Any) -> None:
        number = id(tensor)
        self._found[number] = (ref(tensor, lambda _: self._found.pop(number, None)), state, value)


_counts, _parts = Memory(), Memory()


def count_kept(words: Tensor) -> int:
    """The set bits of a mask's packed words."""
    state = state_of(words)
    count = _counts.get(words, state) if state else None
    if count is None:
        count = int(count_mask(words).sum())
        if state:
            _counts.put(words, state, count)
    return count


def remember_count(words: Tensor, count: int) -> None:
    """What whoever made a mask has counted already."""
    if state := state_of(words):
        _counts.put(words, state, count)


def remember_part(words: Tensor, whole: Tensor, kept: Tensor) -> None:
    """``words`` are those of ``whole``'s set bits, counted row by row, whose bit in ``kept`` is set."""
    states = state_of(words), state_of(whole), state_of(kept)
    if all(states):
        _parts.put(words, states[:2], (ref(whole), kept, states[2]))


def known_part(words: Tensor, whole: Tensor) -> Tensor | None:
    """The ``kept`` that was remembered of the two, if they and it are as they were."""
    found = _parts.get(words, (state_of(words), state_of(whole)))
    return found[1] if found is not None and found[0]() is whole and state_of(found[1]) == found[2] else None


def state_of(tensor: Tensor) -> State | None:
    """What changes with a tensor's values; inference tensors have no version."""
    return None if tensor.is_inference() else (tensor._version, tensor.data_ptr())
