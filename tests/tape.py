"""A CUDA graph's behaviour without a GPU: operations on fixed memory, recorded once, repeated as they were.

As in a graph, what Python decided while recording holds for good: numbers are baked in, tensors are places in memory.
Reading a value back to the host, or an operation whose result's size depends on values, fails as it does in a capture.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

HOST = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "item", "is_nonzero", "equal"}


def _refused(name):
    raise RuntimeError(f"operation not permitted when stream is capturing: {name}")


class NoHost(TorchDispatchMode):
    """Refuses whatever waits for a device."""

    def __enter__(self):
        self._direct = ExitStack()  # on a CPU these read memory without an operation
        for name in ("tolist", "numpy"):
            self._direct.enter_context(patch.object(torch.Tensor, name, lambda *_, name=name: _refused(name)))
        return super().__enter__()

    def __exit__(self, *error):
        self._direct.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        indexed = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in HOST or indexed:
            _refused(name)
        if name == "_to_copy" and (kwargs or {}).get("device", args[0].device) != args[0].device:
            _refused("a copy to another device")
        return self.done(func, args, kwargs or {}, func(*args, **(kwargs or {})))

    def done(self, func, args, kwargs, result):
        return result


class Tape(NoHost):
    """What ``torch.cuda.CUDAGraph`` is; recording runs each operation, which a capture does not."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []
        self.replays = 0

    def done(self, func, args, kwargs, result):
        self.operations.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.operations:
            places = {t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
            found = func(*args, **kwargs)
            for new, place in zip(tree_flatten(found)[0], tree_flatten(result)[0], strict=True):
                if isinstance(new, Tensor) and new.untyped_storage().data_ptr() not in places:
                    place.detach().copy_(new)


class Cuda:
    """What ``captured`` uses of ``torch.cuda``, in the order in which it was used."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.tapes: list[Tape] = []

    def Stream(self):
        return _Stream("side", self.log)

    def current_stream(self):
        return _Stream("current", self.log)

    def stream(self, stream):
        self.log.append(f"on {stream.name}")
        return nullcontext()

    def CUDAGraph(self):
        self.tapes.append(Tape())
        return self.tapes[-1]

    @contextmanager
    def graph(self, tape):
        self.log.append("capture")
        with tape:
            yield


class _Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")
