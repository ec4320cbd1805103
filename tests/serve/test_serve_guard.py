import asyncio
import json
import logging
import re
from typing import Any

import httpx
import pytest
import torch

from maypole.engine import Engine
from maypole.serve.guard import Limits
from tests.engine.engine_fixtures import TEMPLATE, lm_of
from tests.serve.serve_fixtures import adapted_engine, app_of, call, wait_for

SECRET = "the secret of the marmalade"


@pytest.fixture(scope="module")
def app() -> Any:
    return app_of()


def _refused(app: Any, status: int, path: str = "/v1/completions", **options: Any) -> dict:
    answer = call(app, "POST", path, **options)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1), ("temperature", 1e9), ("temperature", "0.5"), ("max_tokens", -1), ("max_tokens", 10**400),
        ("n", 0), ("n", 10**6), ("top_p", 0), ("top_p", 2), ("seed", 2**70), ("logprobs", 10**5), ("stop", ["a"] * 17),
        ("stop", [""]), ("prompt", []), ("prompt", None), ("prompt", {"a": 1}), ("logit_bias", {"1": 1e9}),
        ("logit_bias", {"x": 1}), ("stop_token_ids", [-4]), ("repetition_penalty", 0),
        ("response_format", {"type": "x"}), ("priority", 10**9), ("min_p", -0.1), ("model", ""), ("max_tokens", True),
        ("stream", 1),
    ],
)  # fmt: skip
def test_a_field_out_of_its_range_is_a_bad_request_that_names_it(app: Any, field: str, value: Any):
    error = _refused(app, 400, json={"model": "tiny", "prompt": SECRET, "max_tokens": 1, field: value})
    assert error["param"].startswith(field)
    assert SECRET not in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}', b'{"model": "tiny", "prompt": "a\\ud800"}',
        b'{"\\udfff": 1, "model": "tiny", "prompt": "a"}', b'{"model": "tiny", "prompt": ' + b"[" * 200_000,
        b'{"model": "tiny", "prompt": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"seed": ' + b"1" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_a_bad_request(app: Any, body: bytes):
    assert _refused(app, 400, content=body)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "extra",
    [
        {"prompt": [999_999]}, {"prompt": "a" * 2000}, {"logit_bias": {"999999": 1}}, {"stop_token_ids": [99999]},
        {"regex": "("}, {"regex": "a", "choice": ["b"]}, {"prompt": ""  , "add": 1, "regex": "[" },
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
    ],
)  # fmt: skip
def test_what_the_engine_refuses_is_a_bad_request_streamed_or_not(app: Any, extra: dict):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 2, **extra}
    plain, streamed = (_refused(app, 400, json={**body, "stream": stream}) for stream in (False, True))
    assert plain == streamed
    assert plain["type"] == "invalid_request_error"


def test_an_error_is_short_however_long_what_it_is_about(app: Any):
    schema = {"type": "nonsense", "enum": ["a" * 100_000]}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    error = _refused(app, 400, json={"model": "tiny", "prompt": "a", "response_format": wanted})
    assert len(error["message"]) < 2000


def test_a_long_body_is_refused_whether_or_not_it_says_its_length():
    app = app_of(limits=Limits(max_body_bytes=1000))
    body = json.dumps({"model": "tiny", "prompt": "a" * 10_000_000}).encode()

    async def parts() -> Any:
        yield body

    for content in (body, parts()):
        assert "longer than 1,000 bytes" in _refused(app, 413, content=content)["message"]


@pytest.mark.parametrize("model", ["other", "../a", "/etc/passwd", "a/../b", "A", "", "tiny/"])
def test_an_unknown_model_is_not_found(model: str):
    app = app_of(adapted_engine())
    status = 404 if model else 400
    _refused(app, status, json={"model": model, "prompt": "x", "max_tokens": 1})
    if model:
        assert call(app, "GET", f"/v1/models/{model.replace('/', '%2F')}").status_code == 404


def test_unknown_routes_and_methods_have_errors_of_the_same_shape(app: Any):
    assert call(app, "GET", "/nowhere").json()["error"]["type"] == "not_found_error"
    assert call(app, "GET", "/v1/completions").status_code == 405
    assert call(app, "GET", "/docs").status_code == 404
    assert call(app, "GET", "/redoc").status_code == 404


def test_one_of_the_keys_is_needed_except_by_probes():
    app = app_of(keys=("first-key", "second-key"))
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    for header in ({}, {"Authorization": "Bearer first-ke"}, {"Authorization": "Basic first-key"}):
        _refused(app, 401, json=body, headers=header)
    for key in ("first-key", "second-key"):
        answer = call(app, "POST", "/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200
    assert [call(app, "GET", path).status_code for path in ("/health", "/live", "/ready")] == [200] * 3
    assert [call(app, "GET", path).status_code for path in ("/metrics", "/version", "/v1/models")] == [401] * 3


def test_a_key_has_so_many_completions_at_once_and_another_key_its_own():
    app = app_of(keys=("first-key", "second-key"), limits=Limits(max_per_key=2))
    body = {"model": "tiny", "prompt": "x", "max_tokens": 20, "ignore_eos": True}

    async def asked() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
            sent = [client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
                    for key in ("first-key", "first-key", "first-key", "second-key")]  # fmt: skip
            return await asyncio.gather(*sent)

    answers = asyncio.run(asked())
    assert sorted(a.status_code for a in answers[:3]) == [200, 200, 429]
    assert answers[3].status_code == 200
    (refused,) = (a for a in answers if a.status_code == 429)
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("key_limit", "1")
    headers = {"Authorization": "Bearer first-key"}
    assert call(app, "POST", "/v1/completions", json={**body, "n": 2}, headers=headers).status_code == 200
    assert call(app, "POST", "/v1/completions", json={**body, "n": 3}, headers=headers).status_code == 400


def test_a_foreign_host_name_is_refused(app: Any):
    for host in ("evil.test", "evil.test:80", "127.0.0.1.evil.test", "", "[::2]"):
        assert call(app, "GET", "/health", headers={"Host": host}).status_code == 400
    for host in ("localhost:9", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert call(app, "GET", "/health", headers={"Host": host}).status_code == 200
    assert call(app_of(hosts=("*",)), "GET", "/health", headers={"Host": "any.test"}).status_code == 200


def test_no_prompt_and_no_key_reaches_a_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm_of())
    app = app_of(engine, keys=(SECRET,))
    caplog.set_level(logging.INFO)
    headers = {"Authorization": f"Bearer {SECRET}"}
    for body in ({"max_tokens": 3}, {"max_tokens": -1}, {"regex": "("}, {"seed": SECRET}, {SECRET: 1}):
        call(app, "POST", "/v1/completions", json={"model": "tiny", "prompt": SECRET, **body}, headers=headers)

    def broken(*_: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(engine, "encode", broken)
    answer = call(app, "POST", "/v1/completions", json={"model": "tiny", "prompt": SECRET}, headers=headers)
    assert answer.status_code == 500
    assert SECRET not in answer.text + caplog.text
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.getMessage().startswith("{")]
    assert [line["status"] for line in lines] == [200, 400, 400, 400, 200, 500]
    assert {line["route"] for line in lines} == {"/v1/completions"}
    assert lines[-1]["id"] == answer.headers["x-request-id"]


def test_health_fails_when_the_loop_died(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm_of())
    app = app_of(engine)
    monkeypatch.setattr(type(engine._worker), "alive", False)
    assert [call(app, "GET", p).status_code for p in ("/health", "/ready", "/live")] == [503, 503, 200]
    error = _refused(app, 503, json={"model": "tiny", "prompt": "a"})
    assert error["code"] == "unhealthy"  # at once, not after the time that an answer may take


def test_metrics_count_what_was_answered():
    app = app_of()
    body = {"model": "tiny", "prompt": "abc" * 20, "max_tokens": 40, "ignore_eos": True}
    for stream in (False, True):
        call(app, "POST", "/v1/completions", json={**body, "stream": stream})

    def numbers() -> dict[str, str]:
        return dict(re.findall(r"^maypole_([^ ]+) (\S+)$", call(app, "GET", "/metrics").text, re.MULTILINE))

    wait_for(lambda: float(numbers()["step_seconds_count"]) >= 79)  # a step is counted after it told what it brought
    found = numbers()
    assert found['requests_total{model="tiny",status="200"}'] == "2.0"
    assert (found["prompt_tokens_total"], found["generated_tokens_total"]) == ("122.0", "80.0")
    assert 50 <= float(found["cached_prompt_tokens_total"]) < 61
    assert (found["queue_seconds_count"], found["e2e_seconds_count"]) == ("2.0", "2.0")
    assert found["ttft_seconds_count"] == "1.0"
    assert 1 <= float(found["itl_seconds_count"]) < 40  # tokens that come together are told together
    assert 0 < float(found["kv_usage_ratio"]) < 1
    assert (found["running"], found["waiting"], found["preemptions_total"]) == ("0.0", "0.0", "0.0")


def test_draining_refuses_what_is_new(app: Any):
    app = app_of()
    app.state.ending.draining = True
    answer = call(app, "POST", "/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert call(app, "GET", "/ready").status_code == 503


def test_embeddings_are_the_engines(app: Any):
    engine = Engine(lm_of())
    app = app_of(engine)
    expected = engine.embed(["one", "two words"])
    for given in (["one", "two words"], [engine.encode("one"), engine.encode("two words")]):
        data = call(app, "POST", "/v1/embeddings", json={"model": "tiny", "input": given}).json()["data"]
        assert torch.allclose(torch.tensor([d["embedding"] for d in data]), torch.from_numpy(expected), atol=1e-6)
    short = call(app, "POST", "/v1/embeddings", json={"model": "tiny", "input": "one", "dimensions": 4}).json()
    vector = torch.tensor(short["data"][0]["embedding"])
    assert len(vector) == 4
    assert float(vector.norm()) == pytest.approx(1.0, abs=1e-5)


def test_the_servers_tokenizer_is_at_hand(app: Any):
    ids = call(app, "POST", "/tokenize", json={"prompt": "hé"}).json()
    assert ids["count"] == 4
    assert call(app, "POST", "/detokenize", json={"tokens": ids["tokens"][1:]}).json() == {"prompt": "hé"}
    bare = call(app, "POST", "/tokenize", json={"prompt": "hé", "add_special_tokens": False}).json()
    assert bare["tokens"] == ids["tokens"][1:]
    info = call(app, "GET", "/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<s>", "</s>", "<pad>")
    assert info["chat_template"] == TEMPLATE
