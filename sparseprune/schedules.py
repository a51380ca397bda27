"""How fast to prune: the density at each point of an iterative run.

A schedule is a function ``(density, progress) -> density``: given the final density and how much of the run is done
(0 to 1), the density to have by then. All start at 1 and end exactly at the final density. Any such function will do.
"""

from __future__ import annotations


def one_shot(density: float, progress: float) -> float:
    """Everything in the first step: d from the first step on."""
    return density if progress > 0 else 1.0


def linear(density: float, progress: float) -> float:
    """d(t) = 1 - (1 - d) t: as many weights in every step."""
    return 1.0 - (1.0 - density) * progress


def exponential(density: float, progress: float) -> float:
    """d(t) = d^t: the same share of what remains in every step.

    Source: Tanaka et al. 2020, arXiv:2006.05467, algorithm 1 (rho^(-k/n)).
    """
    return density**progress if progress > 0 else 1.0


def cubic(density: float, progress: float) -> float:
    """d(t) = d + (1 - d) (1 - t)^3: fast while weights abound, slow at the end.

    Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1.
    """
    return density + (1.0 - density) * (1.0 - progress) ** 3
