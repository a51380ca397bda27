"""Edits of kernel sources that plant faults."""

from __future__ import annotations

from collections.abc import Callable


def without(part: str, occurrence: int = 0, replacement: str = "") -> Callable[[str], str]:
    """An edit that replaces one occurrence of ``part``."""

    def edit(text: str) -> str:
        pieces = text.split(part)
        if len(pieces) <= occurrence + 1:
            raise ValueError(f"there are {len(pieces) - 1} of {part!r}, got occurrence {occurrence}")
        head, tail = part.join(pieces[: occurrence + 1]), part.join(pieces[occurrence + 1 :])
        return head + replacement + tail

    return edit
