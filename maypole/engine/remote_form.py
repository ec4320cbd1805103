"""Requests and outputs in the words of the OpenAI API, with the extensions that vLLM and SGLang share.

Knows nothing about connections.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from maypole.core.errors import RemoteError
from maypole.engine.request import Chunk, FinishReason, Output, Request, Scored, Usage, is_ids

STANDARD = frozenset({"generate", "stream"})
"""What every such endpoint does."""
CAPABILITIES = frozenset({"score", "embed", "ids", "structured", "grammars", "extended"})
"""What some do besides: score (echo a prompt with log-probs), embed, ids (prompts of token ids), structured (JSON by
schema), grammars (regex, choice), extended (top_k, min_p, repetition_penalty, min_tokens, ignore_eos, stop tokens)."""

_OWNERS = {
    "maypole": CAPABILITIES,
    "vllm": CAPABILITIES - {"grammars"},  # it has them, under names of its own that change
    "sglang": frozenset({"ids", "structured", "extended", "embed"}),
    "llamacpp": frozenset({"ids", "structured", "embed"}),
}
_NEEDED = {
    "generate": ("max_tokens", "temperature", "top_p", "seed", "n", "stop", "frequency_penalty", "presence_penalty",
                 "logit_bias"),
    "extended": ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids",
                 "skip_special_tokens"),
    "grammars": ("regex", "choice"),
    "structured": ("json_schema", "json_object"),
}  # fmt: skip
"""Capability -> the sampling settings that it brings. The most likely alternatives are not among them: endpoints name
them by text, which does not say which token it was."""


def known_of(owner: str) -> frozenset[str]:
    """What an endpoint can do besides the standard, by who says to own its models."""
    return _OWNERS.get(owner, frozenset())


def needed_for(setting: str) -> str | None:
    """The capability that a sampling setting needs; None where no endpoint can be asked for it."""
    return next((capability for capability, settings in _NEEDED.items() if setting in settings), None)


def body(request: Request, model: str) -> tuple[str, dict[str, Any]]:
    """(route, document) of a request."""
    s = request.sampling
    prompt: Any = request.prompt
    chat = not isinstance(prompt, str) and not is_ids(prompt)
    document: dict[str, Any] = {
        "model": model, "max_tokens": s.max_tokens, "temperature": s.temperature, "top_p": s.top_p, "seed": s.seed,
        "n": s.n,
    }  # fmt: skip
    if chat:
        messages: Any = prompt
        document["messages"] = [dict(message) for message in messages]
        document["logprobs"] = True
    else:
        document["prompt"] = prompt if isinstance(prompt, str) else [int(i) for i in prompt]
        document["logprobs"] = 0
    given = {
        "stop": list(s.stop), "frequency_penalty": s.frequency_penalty, "presence_penalty": s.presence_penalty,
        "logit_bias": {str(i): b for i, b in (s.logit_bias or {}).items()}, "top_k": s.top_k, "min_p": s.min_p,
        "repetition_penalty": 0.0 if s.repetition_penalty == 1.0 else s.repetition_penalty,
        "min_tokens": s.min_tokens, "ignore_eos": s.ignore_eos, "stop_token_ids": list(s.stop_token_ids),
        "regex": s.regex, "choice": list(s.choice or ()), "cache_salt": request.cache_salt,
        "priority": request.priority, "tools": [dict(t) for t in request.tools or ()],
        "chat_template_kwargs": dict(request.chat_template_kwargs or {}),
    }  # fmt: skip
    document |= {name: value for name, value in given.items() if value}
    if not s.skip_special_tokens:
        document["skip_special_tokens"] = False
    if s.json_schema is not None:
        schema = json.loads(s.json_schema) if isinstance(s.json_schema, str) else s.json_schema
        wanted = {"name": "answer", "schema": schema, "strict": True}
        document["response_format"] = {"type": "json_schema", "json_schema": wanted}
    elif s.json_object:
        document["response_format"] = {"type": "json_object"}
    return ("chat/completions" if chat else "completions"), document


def outputs(document: Mapping[str, Any], request: Request) -> list[Output]:
    """The outputs in an answer, in the order of their index; RemoteError where it is no answer."""
    choices = document.get("choices")
    if not isinstance(choices, list) or len(choices) != request.sampling.n:
        raise RemoteError(f"the endpoint answered without {request.sampling.n} choices", retryable=False)
    used = document.get("usage") or {}
    shared = (used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    found = []
    for choice in sorted(choices, key=lambda c: c.get("index", 0)):
        chunk = chunk_of(choice)
        tokens = used.get("completion_tokens", 0) if len(choices) == 1 else len(chunk.logprobs)
        usage = Usage(used.get("prompt_tokens", 0), tokens, shared)
        found.append(_output([chunk], choice.get("finish_reason"), request, usage, chunk.index))
    return found


def chunk_of(choice: Mapping[str, Any]) -> Chunk:
    """What one choice of an answer or an event brings."""
    message = choice.get("delta") or choice.get("message") or {}
    text = choice.get("text") if "text" in choice else message.get("content")
    logprobs = choice.get("logprobs") or {}
    values = logprobs.get("token_logprobs")
    if values is None:
        values = [entry.get("logprob") for entry in logprobs.get("content") or ()]
    return Chunk(text or "", list(choice.get("token_ids") or ()), [float(v) for v in values if v is not None],
                 int(choice.get("index", 0)))  # fmt: skip


def finish_of(said: Sequence[Chunk], last: Chunk, reason: str, request: Request) -> Chunk:
    """The last chunk of a stream, with the whole output."""
    usage = Usage(0, sum(len(c.logprobs) for c in said))
    output = _output(said, reason, request, usage, last.index)
    return Chunk(last.text, last.token_ids, last.logprobs, last.index, output)


def scored(document: Mapping[str, Any], prompt: int, ids: Sequence[int]) -> Scored:
    """log p of the echoed tokens after the first `prompt`."""
    choice = (document.get("choices") or [{}])[0]
    logprobs = choice.get("logprobs") or {}
    values = list(logprobs.get("token_logprobs") or ())[prompt : prompt + len(ids)]
    if len(values) != len(ids) or any(v is None for v in values):
        raise RemoteError("the endpoint echoed no log-probs of the prompt", retryable=False)
    tops = list(logprobs.get("top_logprobs") or ())[prompt : prompt + len(ids)]
    greedy = len(tops) == len(ids) and all(t and v >= max(t.values()) for t, v in zip(tops, values))
    return Scored([float(v) for v in values], float(sum(values)), greedy, list(ids))


def _output(said: Sequence[Chunk], reason: Any, request: Request, usage: Usage, index: int) -> Output:
    finish: FinishReason = "length" if reason == "length" else "stop"
    return Output(
        text="".join(c.text for c in said), token_ids=[i for c in said for i in c.token_ids],
        logprobs=[v for c in said for v in c.logprobs], finish_reason=finish, usage=usage, version=0,
        request=request, index=index,
    )  # fmt: skip
