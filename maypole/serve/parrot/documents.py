"""Calls as JSON and back: what a program and a server say to each other. Knows no routes and no connection."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from maypole.engine.request import Sampling
from maypole.serve.parrot.calls import Call, Of, Ref, Value, Wanted

SPOKEN = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "ignore_eos", "min_tokens",
    "repetition_penalty", "frequency_penalty", "presence_penalty", "regex", "json_schema", "json_object", "choice",
    "skip_special_tokens",
)  # fmt: skip
"""Settings of `Sampling` that go over HTTP."""


def document(call: Call) -> dict[str, Any]:
    """A call as the routes take it."""
    parameters: list[dict[str, Any]] = []
    for name, given in call.inputs.items():
        if isinstance(given, Value):
            said: dict[str, Any] = {"value": given.text}
        elif isinstance(given, Ref):
            said = {"var_id": given.variable}
        else:
            said = {"of": {"call": given.call, "name": given.name}}
        parameters.append({"name": name, "is_output": False, **said})
    for name, wanted in call.outputs.items():
        said = {"name": name, "is_output": True, "sampling": _sampling(wanted)}
        if wanted.transforms:
            said["transforms"] = list(wanted.transforms)
        if wanted.criteria is not None:
            said["criteria"] = wanted.criteria
        parameters.append(said)
    return {
        "template": call.template, "parameters": parameters, "name": call.name, "models": list(call.models),
        "tokenize": call.tokenize, "cache_scope": call.cache_scope,
    }  # fmt: skip


def wanted_of(sampling: Mapping[str, Any], transforms: tuple[str, ...], criteria: Any) -> Wanted:
    """An output from the settings that were sent."""
    given = {name: value for name, value in sampling.items() if name in SPOKEN}
    return Wanted(Sampling(**{"max_tokens": 512, **given}), transforms, sampling.get("seed"), criteria)


def given_of(parameter: Mapping[str, Any]) -> Value | Ref | Of:
    """An input from what was sent: its `value`, `var_id` or `of`."""
    if parameter.get("of") is not None:
        return Of(parameter["of"]["call"], parameter["of"]["name"])
    return Value(parameter["value"]) if parameter.get("value") is not None else Ref(parameter["var_id"])


def _sampling(wanted: Wanted) -> dict[str, Any]:
    default = Sampling()
    said = {f.name: getattr(wanted.sampling, f.name) for f in fields(Sampling) if f.name in SPOKEN}
    chosen = {n: list(v) if isinstance(v, tuple) else v for n, v in said.items() if v != getattr(default, n)}
    chosen["max_tokens"] = wanted.sampling.max_tokens
    return chosen if wanted.seed is None else {**chosen, "seed": wanted.seed}
