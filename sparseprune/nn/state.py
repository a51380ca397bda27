"""What a sparse model holds: its masks, and its checkpoint for the plain dense model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..masks import Masks
from ..ops.bitmask import BitMask
from ..ops.packed_values import unpack_values
from .dense_gradients import sparse_weights


@typed
def held_masks(model: nn.Module) -> Masks:
    """The masks that a model's sparse layers hold, by parameter name: copies, as ``sparsify`` takes them.

    >>> layer = sp.sparsify(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
    >>> held_masks(layer).counts()
    {'weight': 1}
    """
    return Masks({name: layers[0].mask for name, layers in sparse_weights(model).items()})


def dense_state_dict(source: nn.Module | Mapping[str, Any]) -> OrderedDict[str, Any]:
    """The state dict of the dense model: no keys of ours, zeros in the pruned slots, whatever the storage.

    ``dense_model.load_state_dict(dense_state_dict(sparse_model))`` is strict and complete. A stock
    ``nn.Linear`` cannot load a sparse layer's own state dict strictly: torch reports every key that the
    module does not have, and a layer that is not ours has no place for a hook that a pickled or freshly built
    model would keep.

    Args:
        source: a model, or its state dict; entries that are not ours stay as they are.

    Returns:
        A new dictionary; the weights that had a mask are new tensors, all others are the source's.

    Raises:
        TypeError: ``source`` is neither a module nor a mapping.
        ValueError: the packed words of a mask do not fit their weight.
    """
    if isinstance(source, nn.Module):
        source = source.state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(f"source must be a model or a state dict, got {type(source).__name__}")
    dense = OrderedDict(source)
    for key, words in source.items():
        weight_key = key.removesuffix("_mask")
        weight, values = source.get(weight_key), source.get(f"{weight_key}_values")
        stored = values if isinstance(values, Tensor) else weight
        if key.rpartition(".")[2] != "weight_mask" or not _is_packed(words) or not isinstance(stored, Tensor):
            continue
        try:
            mask = BitMask(words, weight.shape if stored is weight else source[f"{weight_key}_shape"].tolist())
            mask = mask.to(stored.device)
            dense[weight_key] = (
                mask.apply(stored.detach()) if stored is weight else unpack_values(stored.detach(), mask)
            )
        except ValueError as error:
            raise ValueError(f"source[{key!r}] must be the packed mask of its weight: {error}") from error
        for part in ("mask", "values", "shape"):
            dense.pop(f"{weight_key}_{part}", None)
    if (metadata := getattr(source, "_metadata", None)) is not None:
        dense._metadata = metadata  # the modules' versions, which load_state_dict reads
    return dense


def _is_packed(words: Any) -> bool:
    return isinstance(words, Tensor) and words.dtype == torch.int32
