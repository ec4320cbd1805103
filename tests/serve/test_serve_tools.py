import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maypole.engine import Engine
from maypole.serve.tool_calls import TAGGED, Forced, Lone, Marked, Reader, message
from tests.engine.engine_fixtures import TEMPLATE, lm_of
from tests.serve.serve_fixtures import app_of, call, events_of

WITH_TOOLS = "{% if tools %}T{{ tools | length }}{% endif %}" + TEMPLATE
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
OSLO = '{"name": "weather", "arguments": {"city": "Oslo"}}'
THOUGHT: dict[str, Any] = {
    "start_anchor": "[assistant]",
    "fields": {"thinking": {"open": "<think>", "close": "</think>", "content": "text"}, **TAGGED["fields"]},
}

READERS: dict[str, Any] = {
    "forced": Forced,
    "lone": lambda: Lone({"weather"}),
    "tagged": lambda: Marked(TAGGED, "", [WEATHER]),
    "told": lambda: Marked(THOUGHT, "[user]hi[assistant]<think>", [WEATHER]),
}


def _read(reader: Reader, pieces: list[str]) -> dict[str, Any]:
    said = message([*(delta for piece in pieces for delta in reader.feed(piece)), *reader.finish()])
    assert reader.called is ("tool_calls" in said)
    for i, found in enumerate(said.get("tool_calls", ())):
        assert found.pop("id").startswith("call_"), i
    return said


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TO_OSLO = _call("weather", '{"city": "Oslo"}')
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("forced", OSLO, {"content": None, "tool_calls": [TO_OSLO]}),
    ("forced", ' {\n"name":"f","arguments":{"a":{}} } ', {"content": None, "tool_calls": [_call("f", '{"a":{}}')]}),
    ("forced", '{"name": "f", "arguments": {"a": "x}', {"content": None, "tool_calls": [_call("f", '{"a": "x}')]}),
    ("forced", '{"name": "f", "arg', {"content": '{"name": "f", "arg'}),
    ("lone", OSLO, {"content": None, "tool_calls": [TO_OSLO]}),
    ("lone", OSLO.replace("arguments", "parameters"), {"content": None, "tool_calls": [TO_OSLO]}),
    ("lone", "It rains.", {"content": "It rains."}),
    ("lone", '{"name": "other", "arguments": {}}', {"content": '{"name": "other", "arguments": {}}'}),
    ("lone", '{"name": ["weather"]}', {"content": '{"name": ["weather"]}'}),
    ("lone", "{ no json", {"content": "{ no json"}),
    ("tagged", "It rains < 3 mm.", {"content": "It rains < 3 mm."}),
    ("tagged", f"<tool_call>\n{OSLO}\n</tool_call>", {"content": None, "tool_calls": [TO_OSLO]}),
    (
        "tagged",
        f"Let me see.\n<tool_call>{OSLO}</tool_call>\n<tool_call>{OSLO}</tool_call>",
        {"content": "Let me see.", "tool_calls": [TO_OSLO] * 2},
    ),
    ("tagged", "So: <tool_call>{no json</tool_call> there", {"content": "So: <tool_call>{no json</tool_call> there"}),
    ("tagged", "So: <tool_call>[1]</tool_call>", {"content": "So: <tool_call>[1]</tool_call>"}),
    ("tagged", '<tool_call>{"name": "f"', {"content": '<tool_call>{"name": "f"'}),
    (
        "told",
        f"cold?</think><tool_call>{OSLO}</tool_call>",
        {"content": None, "reasoning_content": "cold?", "tool_calls": [TO_OSLO]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "expected"), CASES)
def test_calls_are_found_in_what_is_said_and_the_rest_is_text(kind: str, text: str, expected: dict[str, Any]):
    assert _read(READERS[kind](), [text]) == {"role": "assistant", **expected}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 120), max_size=12))
def test_pieces_add_up_to_the_whole_wherever_a_text_is_cut(case: tuple[str, str, dict[str, Any]], cuts: list[int]):
    kind, text, expected = case
    ends = sorted({*(min(cut, len(text)) for cut in cuts), len(text)})
    pieces = [text[begin:end] for begin, end in zip([0, *ends], ends)]
    assert _read(READERS[kind](), pieces) == {"role": "assistant", **expected}


def test_arguments_are_told_as_they_come():
    reader = Forced()
    said = [reader.feed(piece) for piece in ('{"name": "f", "arguments": {"a": "long', " text", '"}}')]
    functions = [part["tool_calls"][0]["function"] for deltas in said for part in deltas]
    assert functions == [
        {"name": "f", "arguments": ""}, {"arguments": '{"a": "long'}, {"arguments": " text"}, {"arguments": '"}'},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Engine:
    lm = lm_of()
    lm.tokenizer.chat_template = WITH_TOOLS
    return Engine(lm)


def _body(engine: Engine, **more: Any) -> dict[str, Any]:
    no_space = {str(engine.encode(space)[-1]): -100 for space in " \t\n\r"}
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER], "max_tokens": 100,
            "temperature": 0, "logit_bias": no_space, **more}  # fmt: skip


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_made_is_made_whole_and_streamed(engine: Engine, choice: Any):
    app, body = app_of(engine), _body(engine, tool_choice=choice)
    answer = call(app, "POST", "/v1/chat/completions", json=body).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    function = answer["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "Oslo"})
    events = events_of(app, "/v1/chat/completions", body)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert message(deltas)["tool_calls"][0]["function"] == function
    assert sum("tool_calls" in delta for delta in deltas) > 5
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_that_the_model_chose_to_make_is_read_from_its_words(engine: Engine):
    lm = lm_of()
    lm.tokenizer.chat_template = WITH_TOOLS + "{# <tool_call> #}"
    for app, said in ((app_of(Engine(lm)), f"Hm.<tool_call>{OSLO}</tool_call>"), (app_of(engine), OSLO)):
        body = _body(engine, choice=[said], logit_bias=None)
        answer = call(app, "POST", "/v1/chat/completions", json=body).json()["choices"][0]
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["content"] == ("Hm." if "Hm" in said else None)
        assert answer["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
        events = events_of(app, "/v1/chat/completions", body)
        told = message([event["choices"][0]["delta"] for event in events])
        told["tool_calls"][0]["id"] = answer["message"]["tool_calls"][0]["id"]
        assert told == answer["message"]
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_model_may_answer_in_words_and_none_forbids_calls(engine: Engine):
    for more in ({"choice": ["It rains."]}, {"choice": [OSLO], "tool_choice": "none"}):
        body = _body(engine, **more, logit_bias=None)
        answer = call(app_of(engine), "POST", "/v1/chat/completions", json=body).json()["choices"][0]
        assert answer["finish_reason"] == "stop"
        assert answer["message"] == {"role": "assistant", "content": more["choice"][0]}


def test_tools_need_a_template_that_has_them_and_a_choice_among_them(engine: Engine):
    body = _body(engine, tool_choice="required")
    for app, wrong, param in (
        (app_of(), body, "tools"),
        (app_of(engine), {**body, "tools": None}, "tool_choice"),
        (app_of(engine), {**body, "tool_choice": {"function": {"name": "other"}}}, "tool_choice"),
        (app_of(engine), {**body, "tool_choice": "sometimes"}, "tool_choice"),
        (app_of(engine), {**body, "tools": [{"type": "function", "function": {}}]}, "tools"),
    ):
        refused = call(app, "POST", "/v1/chat/completions", json=wrong)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"].startswith(param)


def test_a_call_and_its_result_go_back_through_the_template_with_arguments_as_an_object():
    lm = lm_of()
    lm.tokenizer.chat_template = (
        "{{ tools | length }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    )
    engine = Engine(lm)
    made = {"id": "call_1", **TO_OSLO}
    talk = [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]  # fmt: skip
    body = {"model": "tiny", "messages": talk, "tools": [WEATHER], "max_tokens": 1}
    answer = call(app_of(engine), "POST", "/v1/chat/completions", json=body).json()
    rendered = '1[user]hi[assistant]weather{"city": "Oslo"}[tool]rain'
    assert answer["usage"]["prompt_tokens"] == len(engine.tokenizer.encode(rendered, add_special_tokens=False))
    arguments = ("{", '{"a": "\\ud800"}', "[NaN]", "[" * 100_000)
    calls = [{"function": {"name": "f", "arguments": text}} for text in arguments]
    for wrong in (*([c] for c in calls), [{"function": {"arguments": "{}"}}], ["f"], [{}], 5, {"a": 1}):
        talk[1]["tool_calls"] = wrong
        refused = call(app_of(engine), "POST", "/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
