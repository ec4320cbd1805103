from .adapter_entry import AdapterStatus as AdapterStatus
from .engine import Engine as Engine
from .remote import RemoteEngine as RemoteEngine
from .request import NO_ADAPTER as NO_ADAPTER
from .request import Chunk as Chunk
from .request import Merged as Merged
from .request import Output as Output
from .request import Request as Request
from .request import Sampling as Sampling
from .request import Scored as Scored
from .request import ScoreRequest as ScoreRequest
from .request import Usage as Usage
from .settings import AdapterConfig as AdapterConfig
from .settings import EngineConfig as EngineConfig

__all__ = [
    "NO_ADAPTER",
    "AdapterConfig",
    "AdapterStatus",
    "Chunk",
    "Engine",
    "EngineConfig",
    "Merged",
    "Output",
    "RemoteEngine",
    "Request",
    "Sampling",
    "ScoreRequest",
    "Scored",
    "Usage",
]
