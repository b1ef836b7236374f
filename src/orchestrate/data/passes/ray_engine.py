"""Run the data commands on Ray: the same functions over the same byte ranges, on every machine of the
cluster.

Every machine must have this package and see the files under the same path. Files other than plain JSONL are
unpacked on the first machine, into its temporary folder (`TMPDIR`), which the other machines must be able to
read.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from orchestrate.core import needed
from orchestrate.data import passes
from orchestrate.errors import ConfigError


@contextmanager
def on_ray(workers: int | None = None) -> Generator[int]:
    """Run the data commands in the `with` block on Ray, and yield the number of CPUs.

    Uses the cluster at `RAY_ADDRESS`, or one that `ray start` started on this machine. Otherwise, starts a
    temporary cluster with `workers` CPUs (by default one for each core). Raises `MissingExtra` if ray is not
    installed, and `ConfigError` if no cluster is reachable at `RAY_ADDRESS`."""
    ray = _ray()
    joined = not ray.is_initialized()
    if joined:
        _connect(ray, workers)
    try:
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        run = ray.remote(max_retries=2)(_call)

        def engine(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
            return _ordered(ray, run, function, tasks, cpus * passes.AHEAD)

        with passes.using(engine):
            yield cpus
    finally:
        if joined:
            ray.shutdown()


def _connect(ray: Any, workers: int | None) -> None:
    # Disable Ray's usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _reach(address)
            ray.init(**quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster is reachable at RAY_ADDRESS={address}: {error}",
                fix="start the cluster or correct RAY_ADDRESS. To use a temporary cluster, unset RAY_ADDRESS",
            ) from error
        return
    # Don't use address="auto": it joins any cluster on this machine, even one that another command will stop.
    own: dict[str, Any] = {"num_cpus": workers or passes.cores(), "include_dashboard": False, **quiet}
    try:
        try:
            ray.init(**own)
        except ValueError:  # a cluster started with `ray start` has its own number of CPUs
            try:
                ray.init(**quiet)
            except ConnectionError:  # a stopped cluster left its address behind
                ray.init(address="local", **own)
    except Exception as error:  # Ray raises a bare Exception if one of its parts starts too slowly
        raise ConfigError(
            f"could not start Ray on this machine: {error}",
            fix="try again, or leave out --on ray: a single machine needs no cluster",
        ) from error


def _reach(address: str) -> None:
    """Raise `OSError` if nothing listens at HOST:PORT. Ray would wait for minutes."""
    named = urlsplit(address if "://" in address else f"//{address}")
    if named.hostname and named.port:
        socket.create_connection((named.hostname, named.port), timeout=10).close()


def _call(function: Callable[[Any], Any], task: Any) -> Any:
    return function(task)


def _ordered(
    ray: Any, run: Any, function: Callable[[Any], Any], tasks: Sequence[Any], ahead: int
) -> Iterator[Any]:
    """Yield results in task order, with at most `ahead` tasks in progress to limit memory."""
    waiting: deque[Any] = deque()
    left = iter(tasks)
    try:
        while True:
            while len(waiting) < ahead and (task := next(left, None)) is not None:
                waiting.append(run.remote(function, task))
            if not waiting:
                return
            try:
                answer = ray.get(waiting.popleft())
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise passes.WorkerDied(
                    f"a data worker in Ray crashed: {type(error).__name__}",
                    fix="free memory on the machine that ran it, or give the cluster fewer CPUs",
                ) from error
            yield answer
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _ray() -> Any:
    with needed("ray", "--on ray", "ray"):
        import ray  # pyright: ignore[reportMissingImports]  an extra
    return ray
