"""What passes between a server and its replicas: requests read whole, and the messages of their answers.

Knows neither side, and no Ray.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from starlette.types import Message

from maypole.serve.routing import Chain

RETRIES = 3
"""Replicas that may be lost under one request before it fails."""


@dataclass(frozen=True)
class Call:
    """One HTTP request, read whole, and the blocks of its prompt; with a name only that replica is to answer it."""

    method: str
    path: str
    query: bytes = b""
    body: bytes = b""
    chain: Chain = ()
    replica: str = ""


class LostReplica(Exception):
    """The replica that answered is gone."""


Ask = Callable[[Call], AsyncGenerator[list[Message], None]]
"""The messages of a replica's answer; `LostReplica` where it is gone."""
