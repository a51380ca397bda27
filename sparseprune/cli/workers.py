"""Pieces of work that do not depend on each other: in other processes, or on the machines of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

Work = Callable[..., Any]


def in_processes(work: Work, tasks: Sequence[tuple], count: int) -> Iterator[Any]:
    """``work(*task)`` of each task, as they end, in ``count`` processes of this machine, which share its cores.

    Args:
        work: a function of a module.
        tasks: arguments that can be pickled.

    Raises:
        what ``work`` raises, first come; what else runs then is ended, as when the caller stops.
    """
    others = set(multiprocessing.active_children())
    threads = max(1, torch.get_num_threads() // count)
    # Spawned: a fork of a process whose OpenMP threads have started hangs.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(count, len(tasks)), context, initializer=_begin, initargs=(threads,))
    try:
        for done in as_completed([pool.submit(work, *task) for task in tasks]):
            yield done.result()
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one ends us
    torch.set_num_threads(threads)


def on_ray(work: Work, tasks: Sequence[tuple], address: str, gpus: int) -> Iterator[Any]:
    """The same on a Ray cluster, each task on one core and ``gpus`` GPUs; sparseprune must be installed on its machines.

    Args:
        address: of a running cluster, "auto" for the one that this machine belongs to, or "local" to start one here.

    Raises:
        ValueError: Ray is not installed.
        ConnectionError: no cluster is there.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("--ray must come with Ray installed: pip install 'sparseprune[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(address, log_to_driver=False, logging_level="error")
    # A task that raises is not run again; one whose machine is lost is.
    remote = ray.remote(num_cpus=1, num_gpus=gpus)(work)
    waiting = [remote.remote(*task) for task in tasks]
    try:
        while waiting:
            [done], waiting = ray.wait(waiting)
            yield ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
        if started:
            ray.shutdown()
