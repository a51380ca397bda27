"""The argument checks that every model factory shares."""

from __future__ import annotations

from collections.abc import Sequence


def check_image(
    input_shape: Sequence[int], num_classes: int, *, sides: tuple[int, ...] = (), smallest: int = 1
) -> tuple[int, int, int]:
    """Returns ``input_shape`` as a tuple (C, H, W); raises ValueError if the model cannot take such an image.

    Args:
        input_shape: channels, height and width of one image.
        num_classes: the number of outputs, at least 1.
        sides: the heights and widths the model can take; empty for any from ``smallest`` on.
        smallest: the smallest height and width the model can take.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(f"input_shape must be three positive integers (C, H, W), got {shape}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    channels, height, width = shape
    if sides and (height not in sides or width != height):
        allowed = " or ".join(f"({channels}, {side}, {side})" for side in sides)
        raise ValueError(f"input_shape must be {allowed} for this model, got {shape}")
    if min(height, width) < smallest:
        raise ValueError(f"input_shape must have sides of at least {smallest} for this model, got {shape}")
    return channels, height, width
