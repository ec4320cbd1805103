"""What the server counts, in Prometheus' text form. Knows no routes; labels are statuses and served names only."""

from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from maypole.engine.request import Usage

if TYPE_CHECKING:
    from maypole.engine.adapter_store import AdapterStore

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEPS = (0.0005, 0.001, 0.0025, *_SECONDS[:10])

Stats = Callable[[], Mapping[str, int]]


class Metrics:
    """One server's numbers, in a registry of its own; the engine's `stats` and `adapters` are read when it is asked."""

    def __init__(self, stats: Stats, adapters: "AdapterStore") -> None:
        self._registry = CollectorRegistry()
        on = {"registry": self._registry, "namespace": "maypole"}
        self.requests = Counter("requests_total", "Answered requests.", ("status", "model"), **on)
        self._prompt = Counter("prompt_tokens_total", "Tokens of prompts.", **on)
        self._cached = Counter("cached_prompt_tokens_total", "Of these, taken from the cache.", **on)
        self._generated = Counter("generated_tokens_total", "Tokens generated.", **on)

        def histogram(name: str, says: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, says, buckets=buckets, **on)

        self.queue = histogram("queue_seconds", "From request to the start of a completion.")
        self.ttft = histogram("ttft_seconds", "From request to the first token of a stream.")
        self.itl = histogram("itl_seconds", "Between the pieces of a streamed answer.", _STEPS)
        self.e2e = histogram("e2e_seconds", "From request to the end of its answer.")
        self.step = histogram("step_seconds", "One step of the engine: a token for all that run.", _STEPS)
        self._registry.register(_OfEngine(stats))
        self._registry.register(_OfAdapters(adapters))

    def count(self, usage: Usage) -> None:
        """Tokens of one answer."""
        self._prompt.inc(usage.prompt_tokens)
        self._cached.inc(usage.cached_tokens)
        self._generated.inc(usage.completion_tokens)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


class FrontMetrics:
    """The numbers of a server whose replicas answer; `running` says how many requests each has under way."""

    def __init__(self, running: Stats) -> None:
        self._registry = CollectorRegistry()
        on = {"registry": self._registry, "namespace": "maypole"}
        self.requests = Counter("requests_total", "Answered requests.", ("status", "model"), **on)
        self.lost = Counter("lost_replicas_total", "Requests under which a replica was lost.", **on)
        self._registry.register(_OfReplicas(running))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


class _OfReplicas(Collector):
    """What is known of the replicas that are up."""

    def __init__(self, running: Stats) -> None:
        self._running = running

    def collect(self) -> Iterator[Metric]:
        now = self._running()
        yield GaugeMetricFamily("maypole_replicas", "Replicas that are up.", len(now))
        family = GaugeMetricFamily("maypole_replica_running", "Requests under way.", labels=["replica"])
        for name, count in now.items():
            family.add_metric([name], count)
        yield family


class _OfEngine(Collector):
    """What the engine itself keeps count of."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        now = self._stats()
        for name, says in (
            ("running", "Completions that run."),
            ("waiting", "Completions that wait in the engine."),
            ("kv_tokens", "Tokens of running completions in the cache."),
            ("kv_bytes", "Bytes of keys and values, prompts kept for later included."),
        ):
            yield GaugeMetricFamily(f"maypole_{name}", says, now[name])
        ratio = now["kv_bytes"] / max(now["kv_budget"], 1)
        yield GaugeMetricFamily("maypole_kv_usage_ratio", "Share of the memory for keys and values in use.", ratio)
        yield CounterMetricFamily("maypole_preemptions", "Completions that made way for others.", now["preemptions"])


class _OfAdapters(Collector):
    """How near the adapters are, and what it took."""

    def __init__(self, adapters: "AdapterStore") -> None:
        self._adapters = adapters

    def collect(self) -> Iterator[Metric]:
        from maypole.engine.adapter_entry import State

        found, now = Count(status.state for status in self._adapters.list()), self._adapters.stats()
        states = GaugeMetricFamily("maypole_adapter_state", "Adapters by how near they are.", labels=["state"])
        for state in get_args(State):
            states.add_metric([state], found[state])
        yield states
        yield GaugeMetricFamily("maypole_active_adapters", "Adapters on the device.", now["active"])
        yield GaugeMetricFamily("maypole_adapter_bytes", "Their bytes.", now["bytes"])
        for name, says in (
            ("loads", "Adapters that were loaded."),
            ("load_seconds", "Seconds from the decision to load one until it was there, of all together."),
            ("evictions", "Adapters that made way for others."),
        ):
            yield CounterMetricFamily(f"maypole_adapter_{name}", says, now[name])
