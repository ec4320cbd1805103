"""Structured output: what comes out is of the form asked for, or says that it was cut."""

import asyncio
import json
import re
import sys
from typing import Any

import jsonschema
import numpy as np
import pytest

from maypole.core.errors import ConfigError, MissingExtra
from maypole.engine import Engine, Request, Sampling
from maypole.engine.grammar import Grammars
from tests.engine.engine_fixtures import EOS, VOCABULARY, byte_tokenizer, lm_of


def schema(draw: np.random.Generator, depth: int = 0) -> dict[str, Any]:
    """A random JSON schema."""
    kinds = ["integer", "boolean", "string", "enum", "number"] + (["object", "array"] if depth < 2 else [])
    kind = str(draw.choice(kinds))
    if kind == "enum":
        return {"enum": [str(draw.choice(["red", "blü", 'a"b'])), int(draw.integers(9))]}
    if kind == "string":
        return {"type": "string", "maxLength": int(draw.integers(1, 6))}
    if kind == "integer":
        return {"type": "integer", "minimum": 0, "maximum": int(draw.integers(1, 200))}
    if kind == "array":
        return {"type": "array", "items": schema(draw, depth + 1), "maxItems": 2}
    if kind == "object":
        fields = {f"k{i}": schema(draw, depth + 1) for i in range(int(draw.integers(1, 3)))}
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": kind}


def test_outputs_of_random_schemas_are_valid_or_say_that_they_were_cut():
    engine = Engine(lm_of())
    schemas = [schema(np.random.default_rng(i)) for i in range(120)]
    outputs = engine.generate(
        [Request(f"{i}", Sampling(max_tokens=80, json_schema=s, seed=i)) for i, s in enumerate(schemas)]
    )
    whole = 0
    for output, wanted in zip(outputs, schemas):
        if output.finish_reason == "length":
            continue
        jsonschema.validate(json.loads(output.text), wanted)
        whole += 1
    assert whole > 60


def test_every_kind_of_grammar_is_followed_beside_free_text_and_in_a_stream():
    engine = Engine(lm_of())
    asked = {
        "regex": Sampling(max_tokens=40, regex="[a-c]{3}-[0-9]{2}"),
        "choice": Sampling(max_tokens=40, choice=["yes", 'no "way"', "ärger"], temperature=0.0),
        "lark": Sampling(max_tokens=40, lark='start: ("ab" | "c") "!"'),
        "json_object": Sampling(max_tokens=300, json_object=True, temperature=0.5),
        "free": Sampling(max_tokens=20, temperature=0.0, ignore_eos=True),
    }
    outputs = dict(zip(asked, engine.generate([Request("a", s) for s in asked.values()])))
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", outputs["regex"].text)
    assert outputs["choice"].text in ("yes", 'no "way"', "ärger")
    assert outputs["lark"].text in ("ab!", "c!")
    assert [o.finish_reason for n, o in outputs.items() if n in ("regex", "choice", "lark")] == ["stop"] * 3
    if outputs["json_object"].finish_reason == "stop":
        assert isinstance(json.loads(outputs["json_object"].text), dict)
    assert outputs["free"].token_ids == engine.generate([Request("a", asked["free"])])[0].token_ids

    async def streamed() -> str:
        return "".join([chunk.text async for chunk in engine.stream(Request("a", asked["regex"]))])

    assert asyncio.run(streamed()) == outputs["regex"].text


def test_allowed_tokens_are_those_that_lead_to_one_of_the_choices():
    choices = ["ab", "abc", "b"]
    follower = Grammars(byte_tokenizer(), VOCABULARY, [EOS]).follower(Sampling(choice=choices), "request 0")
    assert follower is not None
    tokenizer = byte_tokenizer()
    said = ""
    for token in tokenizer("abc", add_special_tokens=False)["input_ids"]:
        texts = {i: tokenizer.decode([i]) for i in range(4, VOCABULARY)}
        wanted = {i for i, t in texts.items() if t and any(c.startswith(said + t) for c in choices)}
        if said in choices:
            wanted.add(EOS)
        assert set(np.flatnonzero(follower.allowed()).tolist()) == wanted
        follower.take(token)
        said += tokenizer.decode([token])


def test_a_sequence_cut_by_length_says_so():
    output = Engine(lm_of()).generate([Request("a", Sampling(max_tokens=3, regex="[a-z]{9}"))])[0]
    assert (output.finish_reason, len(output.text)) == ("length", 3)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"regex": "(a"}, "--regex"),
        ({"json_schema": {"type": "colour"}}, "--json-schema"),
        ({"json_schema": "{"}, "--json-schema"),
        ({"lark": "start: undefined_rule"}, "--lark"),
        ({"regex": "a", "min_tokens": 2}, "--min-tokens"),
    ],
)
def test_a_grammar_that_cannot_be_followed_is_an_error_before_anything_runs(wrong: dict[str, Any], named: str):
    engine = Engine(lm_of())
    with pytest.raises(ConfigError, match=named):
        engine.generate([Request("a"), Request("b", Sampling(**wrong))])
    assert engine.stats()["waiting"] == 0


def test_two_grammars_at_once_and_a_missing_package_are_errors(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="--json-object"):
        Sampling(regex="a", json_object=True)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"maypole\[serve\]"):
        Engine(lm_of()).generate([Request("a", Sampling(regex="a"))])
