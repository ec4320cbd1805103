"""What a client may send to the routes of programs, with limits on every field. Knows no service."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from maypole.serve.bodies import LEAST_TEMPERATURE, Fields, Ids, Text
from maypole.serve.guard import ApiError
from maypole.serve.parrot.calls import CacheScope, Call, Given, Tokenize, Wanted
from maypole.serve.parrot.documents import given_of, wanted_of
from maypole.serve.parrot.template import NAME

Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=128)]
Id = Annotated[str, Field(min_length=1, max_length=128)]


class SessionBody(Fields):
    """POST /v1/sessions: `ttl_s` seconds after its last use it ends."""

    seed: int | None = Field(None, ge=0, lt=2**63)
    ttl_s: float | None = Field(None, gt=0, le=2**31)


class OutputSampling(Fields):
    """How an output is drawn, in the words of the other routes."""

    max_tokens: int = Field(512, ge=0, le=2**31)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: list[Text] = Field(default_factory=list, max_length=16)
    stop_token_ids: Ids = Field(default_factory=list, max_length=64)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, le=2**31)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    regex: str | None = Field(None, max_length=8192)
    json_schema: dict[str, Any] | None = None
    json_object: bool = False
    choice: list[Text] | None = Field(None, max_length=256, min_length=1)
    skip_special_tokens: bool = True


class CallOutput(Fields):
    """An output of another call of the same batch, by the place of that call."""

    call: int = Field(ge=0, lt=2**20)
    name: Name


class CallParameter(Fields):
    """A hole of the template: an output, or an input with exactly one of `value`, `var_id` and `of`."""

    name: Name
    is_output: bool
    var_id: Id | None = None
    value: str | None = None
    of: CallOutput | None = None
    sampling: OutputSampling | None = None
    transforms: list[Annotated[str, Field(max_length=4096)]] = Field(default_factory=list, max_length=16)
    criteria: Literal["latency", "throughput"] | None = None

    @model_validator(mode="after")
    def _one_side(self) -> "CallParameter":
        given = [name for name in ("var_id", "value", "of") if getattr(self, name) is not None]
        said = [name for name in ("sampling", "transforms", "criteria") if getattr(self, name)]
        if self.is_output and given:
            raise ValueError(f"{self.name}: an output has no {given[0]}")
        if not self.is_output and len(given) != 1:
            raise ValueError(f"{self.name}: an input has exactly one of value, var_id and of")
        if not self.is_output and said:
            raise ValueError(f"{self.name}: an input has no {said[0]}")
        return self


class CallFields(Fields):
    """A template and what its holes are; the first of `models` that is served runs it."""

    template: str = Field(min_length=1)
    parameters: list[CallParameter] = Field(min_length=1, max_length=1024)
    name: str = Field("", max_length=128)
    models: list[Id] = Field(default_factory=list, max_length=64)
    tokenize: Tokenize = "rendered"
    cache_scope: CacheScope = "session"

    @property
    def call(self) -> Call:
        """As the service takes it; ApiError where two parameters have one name."""
        inputs: dict[str, Given] = {}
        outputs: dict[str, Wanted] = {}
        for parameter in self.parameters:
            if parameter.name in inputs or parameter.name in outputs:
                raise ApiError(400, f"two parameters are called {parameter.name!r}", parameter.name)
            if not parameter.is_output:
                inputs[parameter.name] = given_of(parameter.model_dump())
                continue
            drawn = (parameter.sampling or OutputSampling.model_validate({})).model_dump()
            if drawn["temperature"] < LEAST_TEMPERATURE:
                drawn["temperature"] = 0.0
            outputs[parameter.name] = wanted_of(drawn, tuple(parameter.transforms), parameter.criteria)
        return Call(
            template=self.template, inputs=inputs, outputs=outputs, name=self.name, models=tuple(self.models),
            tokenize=self.tokenize, cache_scope=self.cache_scope,
        )  # fmt: skip


class CallBody(CallFields):
    """POST /v1/semantic_calls."""

    session_id: Id


class BatchBody(Fields):
    """POST /v1/semantic_calls/batch: calls may take outputs of each other by `of`.

    With `get` the answer is a stream of events: first what was submitted, then each of these values once it is there.
    """

    session_id: Id
    calls: list[CallFields] = Field(min_length=1, max_length=4096)
    get: list[CallOutput] = Field(default_factory=list, max_length=4096)


class VariableBody(Fields):
    """POST /v1/variables: an input that gets its value now, or later by PUT."""

    session_id: Id
    name: Name
    value: str | None = None


class ValueBody(Fields):
    """PUT /v1/variables/{id}."""

    value: str
