"""Run a model without leaving a trace in it: buffers on copies; modes and random number generators put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

__all__ = ["buffer_copies", "full_precision", "isolated"]


@contextmanager
def isolated(model: nn.Module, in_training: Callable[[nn.Module], bool] | None = None) -> Iterator[None]:
    """Gradients on, dropout off; on leaving, every module's mode and torch's generators are as before.

    Args:
        model: its modules are put in evaluation mode.
        in_training: chooses the modules put in training mode instead.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    try:
        with (
            torch.random.fork_rng(devices=sorted(device.index for device in devices)),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            for module, _ in modes:
                module.training = in_training is not None and in_training(module)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def buffer_copies(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Copies of all buffers for a functional call; floating ones in ``dtype`` where it is given."""
    return {
        name: buffer.detach().to(dtype=dtype if buffer.is_floating_point() else None, copy=True)
        for name, buffer in model.named_buffers()
    }


@contextmanager
def full_precision(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """No autocast, no TF32 unless asked for, no choice among convolution algorithms by timing: same input, same bits."""
    cudnn = torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            exact = {"benchmark": False, "deterministic": True, "allow_tf32": tf32}
            stack.enter_context(cudnn.flags(enabled=cudnn.enabled, **exact))
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        yield
