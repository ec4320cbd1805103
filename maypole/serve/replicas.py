"""A server whose replicas run on a Ray cluster, in this machine or many, behind one address in this process.

Ray Serve starts the replicas, watches them and starts those again that die.
"""

import os
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import Message

from maypole.core.errors import ConfigError, MissingExtra
from maypole.core.ray_cluster import connected
from maypole.serve.front import create_front
from maypole.serve.opening import limits_of, served_name
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.sessions import SessionLimits
from maypole.serve.passing import Call, LostReplica
from maypole.serve.replica import Replica
from maypole.serve.routing import AFFINITIES

if TYPE_CHECKING:
    from maypole.serve.verbs import ServeOptions

ROUTER = "maypole.serve.ray_router:AffinityRouter"
WAITING = 4096
"""Requests one replica may hold; the queue's own limit comes first."""


@contextmanager
def open_front(options: "ServeOptions", *, keys: tuple[str, ...], router: str = ROUTER) -> Iterator[FastAPI]:
    """The application before `options.replicas` replicas on the cluster `options.ray`, which end with the block.

    `router` is the class that chooses among them. ConfigError where there is no such cluster.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtra("ray", "--ray") from error
    count = options.replicas
    with connected(options.ray or "local", count) as has:
        if has["CPU"] < count:
            raise ConfigError("replicas", count, f"at most the {int(has['CPU'])} cores of the cluster")
        threads = options.threads or max(1, int(has["CPU"]) // count)
        # Paths are read on other machines, from other folders.
        model = options.model or ""
        model = os.path.abspath(model) if os.path.isdir(model) else model
        adapters = options.adapters and options.adapters.absolute()
        each = replace(options, name=served_name(options), model=model, adapters=adapters, threads=threads,
                       max_per_key=None, replicas=1, ray=None)  # fmt: skip
        wanted = {"num_cpus": min(threads, int(has["CPU"]) // count), "num_gpus": min(1.0, has.get("GPU", 0.0) / count)}
        deployment: Any = serve.deployment(
            name="replica", num_replicas=count, ray_actor_options=wanted, max_ongoing_requests=WAITING,
            request_router_config={"request_router_class": router}, health_check_period_s=2.0,
            graceful_shutdown_timeout_s=5.0,
        )(Replica)  # fmt: skip
        app = f"maypole-{secrets.token_hex(4)}"
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        try:
            handle = serve.run(deployment.bind(each), name=app, route_prefix=None)
            handle.ready.remote().result()
            own = limits_of(options)
            limits = replace(own, max_queue=own.max_queue * count)
            yield create_front(
                asking(handle), name=served_name(options), limits=limits, keys=keys, hosts=options.hosts,
                running=lambda: running(app), may_ask=lambda adapter: _may_ask(options, adapter),
                capacity=Capacity(options.latency_tokens * count, options.throughput_tokens * count),
                sessions=SessionLimits(sessions=options.max_sessions, ttl=options.session_ttl),
            )  # fmt: skip
        finally:
            serve.delete(app)
            AFFINITIES.pop(app, None)


def _may_ask(options: "ServeOptions", adapter: str) -> bool:
    """Whether replicas would answer for an adapter of this name; they look into the same folder."""
    return adapter in options.found_adapters() or (options.allow_hub and "/" in adapter)


def asking(handle: Any) -> Any:
    """How a front asks the replicas behind `handle`."""
    from ray.exceptions import RayActorError

    streaming = handle.options(stream=True)

    async def ask(call: Call) -> AsyncGenerator[list[Message], None]:
        answer = streaming.answer.remote(call)
        try:
            async for messages in answer:
                yield messages
        except RayActorError as error:
            raise LostReplica from error
        finally:
            answer.cancel()

    return ask


def running(app: str) -> Mapping[str, int]:
    """Requests under way at each replica that is up."""
    affinity = AFFINITIES.get(app)
    return {} if affinity is None else {name: affinity.running[name] for name in affinity.up}
