"""Jobs of a command: in this process, in a pool of processes or on Ray, with equal results."""

import concurrent.futures
import importlib
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ssmast.command import may_start

T = TypeVar("T")


def run_jobs(
    call: Callable[[int], T], jobs: Sequence[int], *, engine: str, workers: int, address: str = ""
) -> Iterator[tuple[int, T]]:
    """Run jobs; yields the number of each with what it returned, as it finishes.

    Args:
        call: runs one job, by its number; other processes get it as their `pickle` sends it.
        jobs: their numbers.
        engine: local or ray.
        workers: processes; one means this process, where the engine is local.
        address: of a Ray cluster whose machines see the files of the job; empty to start one here.

    Raises:
        ValueError: if the engine is unknown or not installed.
        ChildProcessError: if a worker died.
    """
    if engine not in {"local", "ray"}:
        raise ValueError(f"engine must be local or ray, got {engine!r}")
    if not jobs:
        return
    if engine == "ray":
        yield from _ray(call, jobs, workers=workers, address=address)
    elif workers == 1 or not may_start(workers):
        yield from ((job, call(job)) for job in jobs)
    else:
        yield from _pool(call, jobs, workers=workers)


def _pool(
    call: Callable[[int], T], jobs: Sequence[int], *, workers: int
) -> Iterator[tuple[int, T]]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=min(workers, len(jobs)), mp_context=context, initializer=_die_with_parent
    ) as pool:
        try:
            futures = {pool.submit(call, job): job for job in jobs}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died, perhaps out of memory; run the same command again to "
                "resume, with fewer workers= if need be"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _die_with_parent() -> None:
    """End this worker when the main process dies: it would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ray(
    call: Callable[[int], T], jobs: Sequence[int], *, workers: int, address: str
) -> Iterator[tuple[int, T]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            "engine=ray needs Ray; pip install 'ssmast[ray]', or use engine=local"
        ) from error
    started = not ray.is_initialized()
    if started:
        here: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        ray.init(**({"address": address} if address else here), log_to_driver=False)
    try:
        remote = ray.remote(num_cpus=1)(lambda job: call(job))
        todo = list(reversed(jobs))
        running: dict[Any, int] = {}
        while todo or running:
            # Twice what can run at once, so that a cluster's queue stays short.
            while todo and len(running) < 2 * max(workers, int(ray.cluster_resources()["CPU"])):
                job = todo.pop()
                running[remote.remote(job)] = job
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                yield running.pop(reference), ray.get(reference)
    finally:
        if started:
            ray.shutdown()
