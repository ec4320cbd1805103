"""Semantic functions: a Python signature over a prompt template. Knows nothing about where calls run.

Parameters are holes of the template, which is the function's docstring: those annotated with `Output` are filled by
the model, all others by who calls. The types of outputs bound what the model may say.
"""

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, Literal

from maypole.core.errors import ConfigError, DataError, UserError
from maypole.engine.request import SAMPLING_FIELDS, STRUCTURES, Sampling
from maypole.serve.parrot.calls import CacheScope, Call, Criteria, Given, Tokenize, Value, Wanted
from maypole.serve.parrot.template import chains, parse
from maypole.serve.parrot.transforms import transform_of


class Caller(typing.Protocol):
    """What takes a call: a session."""

    def call(self, function: "SemanticFunction", *args: Any, **kwargs: Any) -> Any: ...


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""The session of the innermost ``with``."""


class Input:
    """Annotation of a parameter that the caller fills; one without annotation is the same."""


@dataclass(frozen=True, slots=True, init=False)
class Output:
    """Annotation of a parameter that the model fills, `Output(max_tokens=64)` or `Annotated[int, Output(...)]`.

    Settings are those of `Sampling`, and by default 512 tokens at most. `transform` names what is done to the text
    before anybody gets it, `criteria` how soon it is wanted if nobody says otherwise.
    """

    wanted: Wanted

    def __init__(
        self, *, transform: str | Sequence[str] = (), criteria: Criteria | None = None, seed: int | None = None,
        **sampling: Any,
    ) -> None:  # fmt: skip
        wrong = next((name for name in sampling if name not in SAMPLING_FIELDS or name == "n"), None)
        if wrong is not None:
            raise ConfigError(wrong, sampling[wrong], f"a setting of an output: {', '.join(SAMPLING_FIELDS)} but n")
        if criteria not in (None, *typing.get_args(Criteria)):
            raise ConfigError("criteria", criteria, typing.get_args(Criteria))
        steps = (transform,) if isinstance(transform, str) else tuple(transform)
        transform_of(steps, "transform")
        drawn = Sampling(**{"max_tokens": 512, **sampling})
        object.__setattr__(self, "wanted", Wanted(drawn, steps, seed, criteria))


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of outputs: the grammar that the model is held to unless it is given another, and how text is read."""

    grammar: Mapping[str, Any]
    read: Callable[[str], Any]


TEXT = Kind({}, str)
_KINDS: dict[Any, Kind] = {
    str: TEXT,
    int: Kind({"regex": r"-?[0-9]{1,18}"}, int),
    float: Kind({"regex": r"-?[0-9]{1,15}(\.[0-9]{1,15})?"}, float),
    bool: Kind({"choice": ("true", "false")}, lambda text: text.strip() == "true"),
    dict: Kind({"json_object": True}, json.loads),
    list: Kind({"json_schema": {"type": "array"}}, json.loads),
}


class SemanticFunction:
    """What `function` makes of a Python function. Calling it in a session gives variables, and waits for nothing."""

    def __init__(
        self, function: Callable[..., Any], *, template: str | None = None, models: str | Sequence[str] = (),
        tokenize: Tokenize | None = None, cache_scope: CacheScope | None = None,
    ) -> None:  # fmt: skip
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.template = inspect.cleandoc(function.__doc__ or "") if template is None else template
        self.models = (models,) if isinstance(models, str) else tuple(models)
        self.tokenize: Tokenize | None = tokenize
        self.cache_scope: CacheScope | None = cache_scope
        for field, known in (("tokenize", Tokenize), ("cache_scope", CacheScope)):
            if getattr(self, field) not in (None, *typing.get_args(known)):
                raise ConfigError(field, getattr(self, field), typing.get_args(known))
        self.signature = inspect.signature(function, eval_str=True)
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Wanted] = {}
        self.kinds: dict[str, Kind] = {}
        for name, parameter in self.signature.parameters.items():
            output, kind = _read(parameter.annotation)
            if output is None:
                self.inputs[name] = parameter.default
            else:
                self.kinds[name] = found = _kind_of(kind, name)
                self.outputs[name] = _held(output.wanted, found)
        try:
            cut = chains(parse(self.template), self.inputs, self.outputs)
        except DataError as error:
            where = f"function {self.name}: {error.field}"
            raise DataError(error.what, field=where, expected=error.expected) from error
        self.order = tuple(chain.output for chain in cut)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output's variable, or a tuple of them in the template's order, in the session of the `with` around it."""
        caller = CALLER.get()
        if caller is None:
            raise UserError("a semantic function is called outside of a session", expected="with Session(...):")
        return caller.call(self, *args, **kwargs)

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Input -> what it is given; TypeError as Python has it where something is missing or unknown."""
        chosen = [p for name, p in self.signature.parameters.items() if name in self.inputs]
        bound = self.signature.replace(parameters=chosen, return_annotation=inspect.Signature.empty).bind(
            *args, **kwargs
        )
        bound.apply_defaults()
        return bound.arguments

    def call_of(
        self, given: Mapping[str, Given | list[Given]], tokenize: Tokenize, cache_scope: CacheScope
    ) -> Call:  # fmt: skip
        """The call that is submitted, in a session that says how if the function does not; a list is a hole a line."""
        template, inputs = self.template, dict[str, Given]()
        for name, one in given.items():
            if not isinstance(one, list):
                inputs[name] = one
                continue
            lines = {f"{name}__{n}": item for n, item in enumerate(one)}
            template = template.replace(f"{{{{{name}}}}}", "\n".join(f"{{{{{line}}}}}" for line in lines))
            inputs |= lines
        return Call(
            template=template, inputs=inputs, outputs=self.outputs, name=self.name, models=self.models,
            tokenize=self.tokenize or tokenize, cache_scope=self.cache_scope or cache_scope,
        )  # fmt: skip


def function(
    wrapped: Callable[..., Any] | None = None, *, template: str | None = None, models: str | Sequence[str] = (),
    tokenize: Tokenize | None = None, cache_scope: CacheScope | None = None,
) -> Any:  # fmt: skip
    """Make a semantic function of a Python function whose docstring, or `template`, is the prompt.

    `models` are those that may run it, the first that is served does. `tokenize` and `cache_scope` are the session's
    unless given.

    >>> @function
    ... def summary(text: Input, summary: Output(max_tokens=64, temperature=0)):
    ...     '''Sum up: {{text}}
    ...     Summary:{{summary}}'''
    """

    options: dict[str, Any] = {"tokenize": tokenize, "cache_scope": cache_scope}
    made = partial(SemanticFunction, template=template, models=models, **options)
    return made if wrapped is None else made(wrapped)


def text_of(value: Any, name: str) -> Value:
    """An input as text: numbers as Python writes them, truth as JSON, lists and mappings as JSON."""
    if isinstance(value, str):
        return Value(value)
    if isinstance(value, bool | dict | list | tuple) or value is None:
        return Value(json.dumps(value, ensure_ascii=False))
    if isinstance(value, int | float):
        return Value(str(value))
    raise DataError(
        f"a {type(value).__name__} is no input", field=name, expected="text, a number, plain data or a variable"
    )


def _read(annotation: Any) -> tuple[Output | None, Any]:
    """(what an annotation says of the output, its type)."""
    kind, marks = str, (annotation,)
    if typing.get_origin(annotation) is Annotated:
        kind, *rest = typing.get_args(annotation)
        marks = tuple(rest)
    for mark in marks:
        if mark is Output:
            return Output(), kind
        if isinstance(mark, Output):
            return mark, kind
    return None, kind


def _kind_of(kind: Any, name: str) -> Kind:
    if typing.get_origin(kind) is Literal and all(isinstance(option, str) for option in typing.get_args(kind)):
        return Kind({"choice": typing.get_args(kind)}, str)
    found = _KINDS.get(typing.get_origin(kind) or kind)
    if found is None:
        known = ", ".join(k.__name__ for k in _KINDS)
        raise DataError(f"an output cannot be {kind!r}", field=name, expected=f"{known} or a Literal of texts")
    return found


def _held(wanted: Wanted, kind: Kind) -> Wanted:
    """`wanted` with the grammar of its type, unless it has one or is changed before it is read."""
    if wanted.transforms or any(getattr(wanted.sampling, name) for name in STRUCTURES):
        return wanted
    settings = {f.name: getattr(wanted.sampling, f.name) for f in fields(Sampling)}
    return replace(wanted, sampling=Sampling(**{**settings, **kind.grammar}))
