"""How Ray Serve chooses among the replicas: as `routing` says. Loaded only where Ray is.

Ray pickles the class with the values it uses, modules excepted: what others of the process should see lies in one.
"""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from maypole.serve import routing


class AffinityRouter(RequestRouter):
    """Prefers the replica that has a call's adapter and prefix."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Ray once, when the first request of a handle comes."""
        self.affinity = routing.AFFINITIES[self.app_name] = routing.Affinity()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The best alone, then the next, each as a rank of its own."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # where all are full
        call = pending_request.args[0] if pending_request.args else None
        known = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if only := getattr(call, "replica", ""):
            return [[known[only]]] if only in known else []
        chain = getattr(call, "chain", ())
        return [[known[name]] for name in self.affinity.choose(known, chain)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A request is on its way."""
        self.affinity.begin(replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """It is answered, or failed."""
        self.affinity.end(replica_id.unique_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Its adapters and prefixes died with it."""
        super().on_replica_actor_died(replica_id)
        self._keep()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Those that Ray runs now."""
        super().update_replicas(replicas)
        self._keep()

    def _keep(self) -> None:
        self.affinity.keep(replica.unique_id for replica in self.curr_replicas)
