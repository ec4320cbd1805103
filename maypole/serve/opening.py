"""The engine and the application that the options of `maypole serve` ask for. Loads torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from maypole.core.errors import ConfigError
from maypole.engine.opening import open_engine
from maypole.engine.settings import AdapterConfig, EngineConfig, parse_bytes
from maypole.serve.app import create_app
from maypole.serve.guard import Limits
from maypole.serve.parrot.placement import Capacity
from maypole.serve.parrot.sessions import SessionLimits

if TYPE_CHECKING:
    from maypole.engine.engine import Engine
    from maypole.serve.verbs import ServeOptions


def open_app(
    options: "ServeOptions", *, keys: tuple[str, ...], hosts: tuple[str, ...]
) -> tuple["Engine", FastAPI]:
    """An engine with its adapters, and the application that serves it to those who have a key."""
    options.found_adapters()
    name = served_name(options)
    adapters = AdapterConfig(
        roots=() if options.adapters is None else (options.adapters.absolute(),), hub=options.allow_hub,
        max_active=options.max_adapters, max_bytes=parse_bytes("adapter_bytes", options.adapter_bytes),
    )  # fmt: skip
    config = EngineConfig(max_seqs=options.max_seqs or "auto", kv_bytes=options.kv_bytes, adapters=adapters)
    engine = open_engine(options, config=config)
    if name in engine.adapters:
        raise ConfigError("name", name, "a name that no adapter has")
    app = create_app(
        engine, name=name, limits=limits_of(options), keys=keys, hosts=hosts, dynamic=options.allow_dynamic,
        capacity=Capacity(options.latency_tokens, options.throughput_tokens),
        sessions=SessionLimits(sessions=options.max_sessions, ttl=options.session_ttl),
    )  # fmt: skip
    return engine, app


def served_name(options: "ServeOptions") -> str:
    """The model's name for clients."""
    model = options.model or ""
    return options.name or (Path(model).resolve().name if Path(model).is_dir() else model)


def limits_of(options: "ServeOptions") -> Limits:
    """The bounds that the options set."""
    return Limits(
        max_body_bytes=parse_bytes("max_body", options.max_body), read_timeout=options.read_timeout,
        max_tokens=options.max_tokens, timeout=options.timeout, max_queue=options.max_queue,
        max_per_key=options.max_per_key, stall=options.stall,
    )  # fmt: skip
