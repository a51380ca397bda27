"""What every test gets: interpreted Triton where there is no GPU, poisoned memory, a seed, the devices."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # on a busy machine threads that spin for tiny tensors cost minutes

os.environ.setdefault("SPARSEPRUNE_COSTS", "shipped")  # the same choices whatever this machine was calibrated to

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated, so before any import of ours

import pytest

# Convolutions on a GPU are exact: those that results are compared with, and Triton's, which follow this.
torch.backends.cudnn.allow_tf32 = False
with torch.device("meta"):
    torch.zeros(0)  # torch caches the constructors that a device context redirects: before they are poisoned below


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """``torch.empty`` holds NaN (the largest value for integers), so that nobody reads what was never written."""

    def poison(make):
        def poisoned(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.device.type in ("cpu", "cuda") and type(tensor) is torch.Tensor and tensor.numel():
                with torch.no_grad():
                    if tensor.dtype.is_floating_point:
                        tensor.fill_(float("nan"))
                    elif tensor.dtype in (torch.int32, torch.int64):
                        tensor.fill_(torch.iinfo(tensor.dtype).max)
            return tensor

        return poisoned

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state and leaves the thread count as it was."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def doubles():
    """New floating tensors are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request):
    """The CPU, and the GPU where there is one."""
    return request.param
