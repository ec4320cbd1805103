"""A router that knows nothing: each request goes to the next replica."""

from itertools import count
from typing import Any

from maypole.serve.ray_router import AffinityRouter


class RoundRobin(AffinityRouter):
    """Replicas in turn."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Begins with the first."""
        super().initialize_state(**kwargs)
        self._turn = count()

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """The next one, then the others."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        ordered = sorted(candidate_replicas, key=lambda replica: replica.replica_id.unique_id)
        at = next(self._turn) % len(ordered)
        return [[replica] for replica in ordered[at:] + ordered[:at]]
