"""Errors as a person reads them: one red sentence, and an exit code for scripts."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

import typer

from .console import stderr

USER_ERROR = 2
INTERNAL_ERROR = 1
INTERRUPTED = 130


def sentences(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into a sentence on stderr; its ``debug`` argument lets the traceback through.

    Exit codes: 2 for a wrong argument or file, 130 for Ctrl-C, 1 for what nobody foresaw.
    """

    @functools.wraps(command)
    def wrapped(*args: object, debug: bool = False, **kwargs: object) -> None:
        try:
            command(*args, debug=debug, **kwargs)
        except KeyboardInterrupt as error:
            stderr().print(str(error) or "Interrupted; nothing was written.", style="yellow", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # whoever read stdout has seen enough; Python would complain once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(INTERNAL_ERROR) from None
        except (ValueError, TypeError, OSError) as error:
            if debug:
                raise
            _say(str(error))
            raise typer.Exit(USER_ERROR) from None
        except Exception as error:
            if debug or isinstance(error, typer.Exit | typer.Abort):
                raise
            _say(
                f"{type(error).__name__}: {error} (--debug shows where; 'sparseprune info' tells what a bug report needs)"
            )
            raise typer.Exit(INTERNAL_ERROR) from None

    return wrapped


def _say(message: str) -> None:
    stderr().print(f"error: {message}", style="bold red", markup=False, highlight=False)
