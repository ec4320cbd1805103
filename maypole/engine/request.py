"""What goes into an engine and what comes out: requests, sampling settings, outputs. Knows no torch and no model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np

from maypole.core.errors import ConfigError, UnsupportedCapability

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]
"""Text (special tokens are added), token ids (taken as they are), or messages (through the chat template)."""

FinishReason = Literal["stop", "length", "update", "cancelled", "timeout"]

NO_ADAPTER = ""
"""`Request.adapter` that asks for the base weights alone; None asks for the view the engine was made from."""

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio: sample i of a request with n > 1 draws with seed + i * GOLDEN."""

Structure = Literal["regex", "json_schema", "json_object", "choice", "lark"]
STRUCTURES: tuple[Structure, ...] = ("regex", "json_schema", "json_object", "choice", "lark")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a completion is drawn.

    The steps are, in order: logit bias, grammar, repetition, frequency and presence penalties, temperature, top_k,
    min_p, top_p, typical_p. `temperature` 0 or `top_k` 1 is greedy, the lowest id winning ties; `top_k` 0 keeps
    all. The draw of token t depends on (`seed`, t) only, never on what else runs. `stop` strings may span tokens
    and are not part of the text; stop tokens and end-of-sequence are part of `token_ids` but not of the text. What
    does not fit the model's context is not generated ("length"). `logprobs` = k asks for the k most likely tokens
    beside each sampled one. One of `regex`, `json_schema`, `json_object`, `choice` and `lark` allows only tokens
    that lead to such a text; a completion that ends by "length" is only the beginning of one.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int = 0
    n: int = 1
    stop: Sequence[str] | str = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    logprobs_mode: Literal["raw", "processed"] = "raw"
    skip_special_tokens: bool = True
    regex: str | None = None
    json_schema: Mapping[str, Any] | str | None = None
    json_object: bool = False
    choice: Sequence[str] | None = None
    lark: str | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(int(i) for i in self.stop_token_ids))
        _at_least("max_tokens", self.max_tokens, 0)
        _at_least("min_tokens", self.min_tokens, 0)
        _at_least("n", self.n, 1)
        _at_least("top_k", self.top_k, 0)
        _at_least("temperature", self.temperature, 0.0)
        if self.logprobs is not None:
            _at_least("logprobs", self.logprobs, 0)
        for name, value in (("top_p", self.top_p), ("typical_p", self.typical_p)):
            if not 0.0 < value <= 1.0:
                raise ConfigError(name, value, "above 0 and at most 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise ConfigError("min_p", self.min_p, "0 to 1")
        if not 0.01 <= self.repetition_penalty <= 100.0:  # beyond, scores overflow
            raise ConfigError("repetition_penalty", self.repetition_penalty, "0.01 to 100; 1 is none")
        asked = [name for name in STRUCTURES if getattr(self, name)]
        if len(asked) > 1:
            raise ConfigError(asked[1], getattr(self, asked[1]), f"no other grammar beside {asked[0]}")
        if any(not text for text in stop):
            raise ConfigError("stop", list(stop), "strings that are not empty")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def structure(self) -> Structure | None:
        """The kind of grammar asked for, if any."""
        return next((name for name in STRUCTURES if getattr(self, name)), None)


Combination = Literal["cat", "linear", "ties", "dare_linear", "dare_ties"]
SignMethod = Literal["total", "frequency"]


@dataclass(frozen=True, slots=True)
class Merged:
    """Several LoRA adapters as one, for a request: their weighted sum ("cat", exact), or one of peft's combinations.

    `weights` are 1 by default. "ties" and "dare" keep a share `density` of the numbers of each adapter, "ties" the
    largest and those of the sign that `majority_sign_method` elects, "dare" those drawn from `seed`. Equal values are
    one adapter, made once.

    Examples
    --------
    >>> Request("Once", adapter=Merged(["fr", "sql"], weights=[0.7, 0.3]))
    """

    adapters: Sequence[str]
    weights: Sequence[float] | None = None
    combination: Combination = "cat"
    density: float = 1.0
    majority_sign_method: SignMethod = "total"
    seed: int = 0

    def __post_init__(self) -> None:
        names = (self.adapters,) if isinstance(self.adapters, str) else tuple(self.adapters)
        if isinstance(self.adapters, str) or not names or not all(isinstance(n, str) and n for n in names):
            raise ConfigError("adapters", self.adapters, "a list of names, one or more")
        weights = (1.0,) * len(names) if self.weights is None else tuple(self.weights)
        if len(weights) != len(names):
            raise ConfigError("weights", list(weights), f"one for each of the {len(names)} adapters")
        if not all(isinstance(w, int | float) and math.isfinite(w) for w in weights):
            raise ConfigError("weights", list(weights), "finite numbers")
        if self.combination not in get_args(Combination):
            raise ConfigError("combination", self.combination, get_args(Combination))
        if not 0.0 < self.density <= 1.0:
            raise ConfigError("density", self.density, "above 0 and at most 1")
        if self.density < 1.0 and self.combination in ("cat", "linear"):
            raise ConfigError("density", self.density, f"1: {self.combination!r} keeps all numbers")
        if self.majority_sign_method not in get_args(SignMethod):
            raise ConfigError("majority_sign_method", self.majority_sign_method, get_args(SignMethod))
        object.__setattr__(self, "adapters", names)
        object.__setattr__(self, "weights", tuple(map(float, weights)))

    def __str__(self) -> str:
        return "+".join(self.adapters)


Target = str | Merged
"""What a request may run on besides the base: an adapter by its name, or several as one."""


def named_in(target: Target | None) -> tuple[str, ...]:
    """The adapters that `target` is made of; none for the base."""
    if target is None:
        return ()
    return tuple(target.adapters) if isinstance(target, Merged) else (target,)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to continue. Higher `priority` starts earlier; prompts share computation only at equal `cache_salt`.

    `adapter` is a name, or several as one (`Merged`). `tools` and `chat_template_kwargs` go to the chat template and
    need messages. After `timeout` seconds, counted from when it is given to the engine, a request ends with what it has
    said so far ("timeout"), be it still waiting.
    """

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    adapter: Target | None = None
    priority: int = 0
    cache_salt: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt, of the completion, and of the prompt taken from what another request computed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One completion. `logprobs` are log p of each sampled token under the raw distribution, in fp32.

    `top_logprobs[t]` maps the `Sampling.logprobs` most likely ids at t, best first, to their log-probs. `index` counts
    the samples of one request. `version` is that of the weights that made every token of it. `queued` is how many
    seconds it waited before it started.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    usage: Usage
    version: int
    request: Request
    index: int = 0
    top_logprobs: list[dict[int, float]] | None = None
    stop_reason: str | int | None = None
    queued: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step added to a streamed completion; `output` stands on the last one of each sample."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    index: int = 0
    output: Output | None = None
    top_logprobs: list[dict[int, float]] | None = None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Continuations of one prompt to be scored; prompt None means from the beginning-of-sequence token.

    A text continuation starts where the tokens of prompt + continuation leave those of the prompt alone, so a token
    that straddles the border is scored whole. Nothing is appended.
    """

    prompt: Prompt | None
    continuations: Sequence[str | Sequence[int]]
    adapter: Target | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """log p of each token of a continuation, their sum, and whether greedy decoding would have said exactly this.

    `best[t]` is (id, log p) of the most likely token at t; the chosen one itself wins ties.
    """

    logprobs: list[float]
    sum: float
    is_greedy: bool
    token_ids: list[int] = field(default_factory=list)
    best: list[tuple[int, float]] = field(default_factory=list)


def unsupported(sampling: Sampling, where: str) -> None:
    """Raise UnsupportedCapability for settings that this engine cannot follow."""
    if sampling.prompt_logprobs:
        raise UnsupportedCapability("log-probs of the prompt do not come with a completion", where, "engine.score")
    if sampling.logprobs_mode != "raw":
        raise UnsupportedCapability("only the raw distribution's log-probs are kept", where, 'logprobs_mode="raw"')


def is_ids(prompt: object) -> bool:
    """Whether a prompt is a list of token ids."""
    if isinstance(prompt, np.ndarray):
        return True
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(i, int | np.integer) for i in prompt)
    )


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(name, value, f"at least {least}")


SAMPLING_FIELDS = tuple(f.name for f in fields(Sampling))
