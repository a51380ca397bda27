"""Loads the compiled libraries, once, and says why they cannot be used where they cannot."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent.parent / "lib"
LIBRARIES = {"cpu": FOLDER / "libsparseprune_cpu.so", "cuda": FOLDER / "libsparseprune_cuda.so"}

# What the kernels are instantiated for. The CPU has no half types yet: they would be float32 with two conversions.
DTYPES = {
    "cpu": {torch.float32, torch.float64},
    "cuda": {torch.float16, torch.bfloat16, torch.float32, torch.float64},
}


@cache
def loaded() -> dict[str, str]:
    """Device type -> "" if its library is loaded, else the reason why it is not.

    The CPU library defines the schemas, so it comes first and the CUDA one cannot do without it.
    """
    state: dict[str, str] = {}
    for device, path in LIBRARIES.items():
        if not path.exists():
            state[device] = f"this installation was built without {path.name}"
        elif state.get("cpu"):
            state[device] = f"{path.name} needs the CPU library: {state['cpu']}"
        else:
            try:
                torch.ops.load_library(path)
                state[device] = ""
            except OSError as error:
                state[device] = f"{path.name} does not load: {error}"
    return state


def refusal(devices: set[str], dtypes: set[torch.dtype]) -> str | None:
    """Why the native kernels cannot take tensors on these devices and of these floating dtypes, or None."""
    if len(devices) > 1:
        return f"its tensors are on several devices: {', '.join(sorted(devices))}"
    device = next(iter(devices), "cpu")
    if device not in LIBRARIES:
        return f"there is no native kernel for device type {device!r}"
    if reason := loaded()[device]:
        return reason
    if unknown := dtypes - DTYPES[device]:
        return f"dtype {', '.join(map(str, unknown))} is not one of {', '.join(map(str, DTYPES[device]))} on {device}"
    return None
