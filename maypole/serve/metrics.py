"""What the server counts, in Prometheus' text form. Knows no routes; labels are statuses and served names only."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One server's numbers, in a registry of its own; `stats` is read when they are asked for."""

    def __init__(self, stats: Callable[[], Mapping[str, int]]) -> None:
        self._registry = CollectorRegistry()
        on = {"registry": self._registry, "namespace": "maypole"}
        self.requests = Counter("requests_total", "Answered requests.", ("status", "model"), **on)
        self.prompt_tokens = Counter("prompt_tokens_total", "Tokens of prompts.", **on)
        self.cached_tokens = Counter("cached_prompt_tokens_total", "Of these, taken from the cache.", **on)
        self.generated_tokens = Counter("generated_tokens_total", "Tokens generated.", **on)
        self.e2e = Histogram("e2e_seconds", "From request to the end of its answer.", buckets=_SECONDS, **on)
        self.ttft = Histogram("ttft_seconds", "From request to the first token.", buckets=_SECONDS, **on)
        for name in ("running", "waiting", "kv_tokens", "kv_bytes"):
            gauge = Gauge(name, f"The engine's {name.replace('_', ' ')}.", **on)
            gauge.set_function(lambda name=name: stats()[name])

    def count(self, prompt: int, cached: int, generated: int) -> None:
        """Tokens of one answer."""
        self.prompt_tokens.inc(prompt)
        self.cached_tokens.inc(cached)
        self.generated_tokens.inc(generated)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
