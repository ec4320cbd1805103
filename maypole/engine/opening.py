"""The engine that a command's model options ask for. Loads torch only when called."""

from typing import TYPE_CHECKING, Any

from maypole.core.config import ModelOptions, required

if TYPE_CHECKING:
    from maypole.engine.engine import Engine


def open_engine(options: ModelOptions, *, task: str = "causal", **changes: Any) -> "Engine":
    """An engine with weights of its own; `changes` replace fields such as ``model=``, or are further ones of `load`."""
    from maypole.engine.engine import Engine

    names = ("model", "adapter", "device", "dtype", "quantization", "revision", "trust_remote_code")
    fields = {name: getattr(options, name) for name in names} | changes
    if fields["model"] is None:
        required(options, "model")
    return Engine.load(fields.pop("model"), task=task, **fields)
