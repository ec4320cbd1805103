"""A Ray cluster to work on: one that runs, or one of this machine for as long as it is needed."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from maypole.core.errors import ConfigError, MissingExtra

CONNECT_SECONDS = 10.0


@contextmanager
def connected(address: str, workers: int) -> Iterator[Mapping[str, float]]:
    """What the cluster at `address` has (``{"CPU": 8.0, "GPU": 1.0}``), connected to for the block; "local" starts one
    that has a core for each of `workers`. ConfigError where none answers; MissingExtra without Ray."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("ray", "--ray") from error
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address, workers)
    try:
        yield ray.cluster_resources()
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def kept(address: str | None, workers: int) -> Iterator[None]:
    """For the block there is one connection to the cluster at `address`, whoever asks for it; None: there is none."""
    if address is None:
        yield
    else:
        with redirect_stdout(sys.stderr), connected(address, workers):
            yield


def _connect(ray: Any, address: str, workers: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
    options["address"] = address
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray itself waits minutes for a host that does not answer
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError("ray", address, f'"local", or the address of a running cluster ({error})') from error
