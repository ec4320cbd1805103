import json
from typing import Any

import pytest

from maypole.engine import Engine, Request, Sampling, ScoreRequest
from tests.engine.engine_fixtures import lm_of
from tests.serve.serve_fixtures import PROMPT, app_of, call, events_of


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(lm_of())


@pytest.fixture(scope="module")
def app(engine: Engine) -> Any:
    return app_of(engine)


def _post(app: Any, path: str, **body: Any) -> Any:
    answer = call(app, "POST", path, json={"model": "tiny", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _events(app: Any, path: str, **body: Any) -> list[dict]:
    return events_of(app, path, {"model": "tiny", **body})


def test_a_completion_is_what_the_engine_says(app: Any, engine: Engine):
    sampling = Sampling(max_tokens=12, temperature=0.8, seed=5, n=2, ignore_eos=True)
    expected = engine.generate([Request(p, sampling) for p in (PROMPT, "b")])
    answer = _post(app, "/v1/completions", prompt=[PROMPT, "b"], max_tokens=12, temperature=0.8, seed=5, n=2,
                   ignore_eos=True, return_token_ids=True)  # fmt: skip
    assert [c["token_ids"] for c in answer["choices"]] == [o.token_ids for o in expected]
    assert [c["text"] for c in answer["choices"]] == [o.text for o in expected]
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    prompt = len(engine.encode(PROMPT)) + len(engine.encode("b"))
    assert answer["usage"]["prompt_tokens"] == prompt
    assert answer["usage"]["completion_tokens"] == 48


def test_token_ids_are_a_prompt(app: Any, engine: Engine):
    ids = engine.encode(PROMPT)
    options = {"max_tokens": 6, "temperature": 0}
    by_text = _post(app, "/v1/completions", prompt=PROMPT, **options)
    by_ids = _post(app, "/v1/completions", prompt=ids, **options)
    several = _post(app, "/v1/completions", prompt=[ids, ids], **options)
    assert by_ids["choices"] == by_text["choices"]
    assert [c["text"] for c in several["choices"]] == [by_text["choices"][0]["text"]] * 2


def test_a_stream_adds_up_to_the_whole_answer(app: Any):
    options = {"prompt": [PROMPT, "b"], "max_tokens": 12, "seed": 5, "n": 2, "logprobs": 2, "echo": True}
    whole = _post(app, "/v1/completions", **options)
    events = _events(app, "/v1/completions", stream_options={"include_usage": True}, **options)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine][-1] == choice["finish_reason"]
        for name in ("tokens", "text_offset"):
            assert [x for c in mine if c["logprobs"] for x in c["logprobs"][name]] == choice["logprobs"][name]
        streamed = [x for c in mine if c["logprobs"] for x in c["logprobs"]["token_logprobs"]]
        assert streamed[1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-5)
        assert all(c["logprobs"]["top_logprobs"] for c in mine if c["logprobs"])


def test_an_echoed_prompt_has_the_scores_of_score(app: Any, engine: Engine):
    ids = engine.encode(PROMPT)
    scored = engine.score([ScoreRequest(ids[:1], [ids[1:]])])[0][0]
    for max_tokens in (0, 1):
        answer = _post(app, "/v1/completions", prompt=ids, max_tokens=max_tokens, echo=True, logprobs=1, temperature=0)
        logprobs = answer["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["token_logprobs"][1 : len(ids)] == scored.logprobs
        assert len(logprobs["tokens"]) == len(ids) + max_tokens
        assert all(len(logprobs[name]) == len(ids) + max_tokens for name in ("top_logprobs", "text_offset"))


def test_greedy_tokens_are_recognised_by_the_identical_float(app: Any, engine: Engine):
    prompt = engine.encode(PROMPT)
    greedy = engine.generate([Request(prompt, Sampling(max_tokens=8, temperature=0.0, ignore_eos=True))])[0].token_ids
    for continuation, expected in ((greedy, True), ([*greedy[:-1], (greedy[-1] + 1) % 260], False)):
        answer = _post(
            app, "/v1/completions", prompt=[*prompt, *continuation], max_tokens=1, echo=True, logprobs=1, temperature=0
        )
        logprobs = answer["choices"][0]["logprobs"]
        pairs = zip(logprobs["token_logprobs"][len(prompt) : -1], logprobs["top_logprobs"][len(prompt) : -1])
        assert all(value == max(top.values()) for value, top in pairs) is expected


def test_a_chat_answers_whole_and_streamed(app: Any, engine: Engine):
    messages = [{"role": "user", "content": "hi"}]
    expected = engine.generate([Request(messages, Sampling(max_tokens=10, seed=4, logprobs=2))])[0]
    options = {"messages": messages, "max_completion_tokens": 10, "seed": 4, "logprobs": True, "top_logprobs": 2}
    choice = _post(app, "/v1/chat/completions", **options)["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    content = choice["logprobs"]["content"]
    assert [c["logprob"] for c in content] == pytest.approx(expected.logprobs, abs=1e-5)
    assert [len(c["top_logprobs"]) for c in content] == [2] * len(expected.token_ids)
    events = _events(app, "/v1/chat/completions", **options)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {e["object"] for e in events} == {"chat.completion.chunk"}
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == expected.text
    parts = [e["choices"][0]["logprobs"] for e in events if e["choices"][0]["logprobs"]]
    assert [c["token"] for p in parts for c in p["content"]] == [c["token"] for c in content]
    assert all(len(c["top_logprobs"]) == 2 for p in parts for c in p["content"])


def test_text_parts_are_joined_and_a_stop_string_ends(app: Any):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    options = {"max_tokens": 10, "seed": 4}
    whole = _post(app, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], **options)
    joined = _post(app, "/v1/chat/completions", messages=[{"role": "user", "content": parts}], **options)
    assert joined["choices"] == whole["choices"]
    text = _post(app, "/v1/completions", prompt="x", max_tokens=10, seed=1, choice=["one two"], stop="two")
    assert text["choices"][0]["text"] == "one "
    assert text["choices"][0]["finish_reason"] == "stop"


def _no_space(engine: Engine) -> dict[str, int]:
    """A bias without which a random model would fill its answer with white space."""
    return {str(engine.encode(space)[-1]): -100 for space in " \t\n\r"}


def test_an_answer_follows_a_schema(app: Any, engine: Engine):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = _post(app, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}], response_format=wanted,
                   max_tokens=60, temperature=0, logit_bias=_no_space(engine))  # fmt: skip
    assert json.loads(answer["choices"][0]["message"]["content"])["a"] in (1, 2)


def test_unknown_fields_are_ignored_and_named(app: Any):
    answer = call(app, "POST", "/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1, "bestest": 1})
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == '["bestest"]'


def test_null_is_what_leaving_a_field_out_is(app: Any):
    body = {"prompt": PROMPT, "max_tokens": 5, "seed": 1}
    null = dict.fromkeys(("temperature", "top_p", "n", "stop", "logit_bias", "stream", "logprobs", "user"))
    assert _post(app, "/v1/completions", **body, **null)["choices"] == _post(app, "/v1/completions", **body)["choices"]


def test_both_names_for_the_most_tokens_are_known(app: Any):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = _post(app, "/v1/completions", prompt="a", ignore_eos=True, **{name: 3})
        assert answer["usage"]["completion_tokens"] == 3
