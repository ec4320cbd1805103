"""What a client may send, in the words of the OpenAI API, with limits on every field. Knows no engine state."""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from maypole.engine.request import Sampling
from maypole.engine.settings import ADAPTER_NAME
from maypole.serve.guard import ApiError, decoded

Text = Annotated[str, Field(max_length=256, min_length=1)]
Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]
Written = Annotated[int, Field(strict=False)]
"""A number as a key, which JSON has as text."""
LEAST_TEMPERATURE = 1e-5
"""Below it logits divided by the temperature may overflow; the draw is greedy all the same."""
TEMPLATE_OPTIONS_REFUSED = frozenset({"chat_template", "tokenize", "tools", "documents", "conversation"})
"""Arguments of a chat template's renderer that are no business of a client."""


def _or_null(schema: dict[str, Any]) -> None:
    """Say in a body's description that fields which may be left out may be null."""
    for name in set(schema["properties"]) - set(schema.get("required", ())):
        known = schema["properties"][name]
        if {"type": "null"} not in known.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [known, {"type": "null"}]}


class Fields(BaseModel):
    """Unknown fields are ignored, and named in a header; null is what leaving a field out is; "1" is no number."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True, json_schema_extra=_or_null)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, document: Any) -> Any:
        return {k: v for k, v in document.items() if v is not None} if isinstance(document, dict) else document


class Body(Fields):
    """What names a model."""

    model: str = Field(min_length=1, max_length=512)


class JsonSchema(Fields):
    name: str = "answer"
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Fields):
    include_usage: bool = False


class Drawn(Body):
    """How completions are drawn: what both routes share."""

    max_tokens: int | None = Field(None, ge=0, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=0, le=2**31)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[Text] | None = Field(None, max_length=256)
    stop_token_ids: Ids = Field(default_factory=list, max_length=64)
    stream: bool = False
    stream_options: StreamOptions | None = None
    logit_bias: dict[Written, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    response_format: ResponseFormat | None = None
    regex: str | None = Field(None, max_length=8192)
    choice: list[Text] | None = Field(None, max_length=256, min_length=1)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=2**31)
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    priority: int = Field(0, ge=-100, le=100)
    cache_salt: str | None = Field(None, max_length=256)

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 16:
            raise ValueError("at most 16 strings")
        return value or None

    def drawn(self, max_tokens: int, logprobs: int | None, json_schema: Mapping[str, Any] | None = None) -> Sampling:
        """As the engine takes it. Without a seed every request draws anew."""
        wanted = self.response_format
        if wanted is not None and wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise ApiError(400, "json_schema is missing", "response_format")
            json_schema = json_schema or wanted.json_schema.schema_
        return Sampling(
            max_tokens=max_tokens,
            temperature=0.0 if self.temperature < LEAST_TEMPERATURE else self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            n=self.n,
            seed=secrets.randbits(63) if self.seed is None else self.seed % 2**64,
            stop=self.stop or (),
            stop_token_ids=self.stop_token_ids,
            logit_bias=self.logit_bias,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            skip_special_tokens=self.skip_special_tokens,
            logprobs=logprobs,
            json_schema=json_schema,
            json_object=wanted is not None and wanted.type == "json_object" and json_schema is None,
            regex=self.regex,
            choice=self.choice,
        )

    @property
    def most_tokens(self) -> int | None:
        """Tokens of a completion at most, under either of the names that the API gave it."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(Drawn):
    """POST /v1/completions."""

    prompt: str | Ids | list[str] | list[Ids] = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False

    @property
    def prompts(self) -> list[Any]:
        """One or several, each a text or ids."""
        return _several(self.prompt)


class Embeddings(Body):
    """POST /v1/embeddings."""

    input: str | Ids | list[str] | list[Ids] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=2**20)

    @property
    def inputs(self) -> list[Any]:
        """One or several, each a text or ids."""
        return _several(self.input)


class Tokenize(Fields):
    """POST /tokenize: a text, or messages through the chat template."""

    prompt: str = ""
    add_special_tokens: bool = True
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)

    @field_validator("messages")
    @classmethod
    def _plain(cls, messages: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        return None if messages is None else [_message(message) for message in messages]


class Detokenize(Fields):
    """POST /detokenize."""

    tokens: Ids


class LoadAdapter(Fields):
    """POST /v1/load_lora_adapter: a directory in the folder of adapters, under a name without path parts."""

    lora_name: str = Field(pattern=ADAPTER_NAME)
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadAdapter(Fields):
    """POST /v1/unload_lora_adapter: it takes no new requests, and is gone when those it has are answered."""

    lora_name: str = Field(min_length=1, max_length=256)


class Function(BaseModel):
    name: str = Field(min_length=1, max_length=64)
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    function: Annotated[dict[str, Any], Field(min_length=1)]

    @property
    def named(self) -> Function:
        return Function.model_validate(self.function)

    @field_validator("function")
    @classmethod
    def _is_function(cls, value: dict[str, Any]) -> dict[str, Any]:
        Function.model_validate(value)
        return value


class ChatBody(Drawn):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=4096)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("messages")
    @classmethod
    def _plain(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_message(message) for message in messages]

    @field_validator("chat_template_kwargs")
    @classmethod
    def _harmless(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        refused = sorted(name for name in options or {} if name in TEMPLATE_OPTIONS_REFUSED or "return_" in name)
        if refused:
            raise ValueError(f"{refused[0]} cannot be set")
        return options

    @property
    def called(self) -> list[Function]:
        """The functions one of which the answer must call; empty where it may speak."""
        tools = [tool.named for tool in self.tools or ()]
        if self.tool_choice == "required":
            if not tools:
                raise ApiError(400, "no tools to choose from", "tool_choice")
            return tools
        if isinstance(self.tool_choice, dict):
            name = (self.tool_choice.get("function") or {}).get("name")
            found = [tool for tool in tools if tool.name == name]
            if not found:
                raise ApiError(400, "tool_choice names none of the tools", "tool_choice")
            return found
        return []


def _several(given: str | list[Any]) -> list[Any]:
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


def call_schema(functions: list[Function]) -> dict[str, Any]:
    """The JSON of a call of one of `functions`."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": f.name}, "arguments": f.parameters},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for f in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """With text parts joined: templates want one string."""
    if not isinstance(message.get("role"), str):
        raise ValueError("a message needs a role")
    content = message.get("content")
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if any(not isinstance(text, str) for text in texts):
            raise ValueError("content has parts other than text")
        content = "".join(map(str, texts))
    if not (isinstance(content, str) or (content is None and message.get("tool_calls"))):
        raise ValueError("content is not text")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError("tool_calls are no list")
    return {**message, "content": content or "", **({"tool_calls": list(map(_called, calls))} if calls else {})}


def _called(call: Any) -> dict[str, Any]:
    """A call made earlier, its arguments as an object: clients send them as text, templates write them themselves."""
    try:
        function = call["function"]
        given = function["arguments"]
        arguments = decoded(given) if isinstance(given, str) else given
        return {**call, "function": {**function, "name": str(function["name"]), "arguments": arguments}}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError("tool_calls need a function with a name and arguments in JSON") from error


Kind = TypeVar("Kind", bound=BaseModel)


def parsed(kind: type[Kind], document: dict[str, Any]) -> tuple[Kind, list[str]]:
    """The body and the names of fields that it does not know; 400 for the first wrong field, its value not repeated."""
    try:
        body = kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"][:2])
        raise ApiError(400, f"{field}: {first['msg']}", field or None) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    return body, sorted(set(document) - set(kind.model_fields))
