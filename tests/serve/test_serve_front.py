"""The routes before the replicas, with replicas that are functions."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from maypole.core.errors import UserError
from maypole.serve.front import ASKED, READ, create_front
from maypole.serve.guard import Limits
from maypole.serve.passing import RETRIES, Call, LostReplica
from maypole.serve.verbs import ServeOptions
from tests.serve.serve_fixtures import PROMPT, app_of, call

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
STREAM = {**HEAD, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
BODY: dict[str, Any] = {"model": "tiny", "prompt": PROMPT}


def said(text: str, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def front_of(ask: Callable[[Call], AsyncGenerator[Any, None]], **options: Any) -> Any:
    limits = options.pop("limits", Limits())
    running = options.pop("running", lambda: {"one": 0})
    return create_front(ask, name="tiny", limits=limits, hosts=("localhost",), running=running, **options)


async def echo(call: Call) -> AsyncGenerator[Any, None]:
    yield [HEAD, said(json.dumps({"path": call.path, "asked": json.loads(call.body or b"null")}))]


def test_a_call_is_passed_on_whole_and_its_answer_comes_back():
    answer = call(front_of(echo), "POST", "/v1/completions", json={**BODY, "unknown": "ü"})
    assert answer.json() == {"path": "/v1/completions", "asked": {**BODY, "unknown": "ü"}}
    assert call(front_of(echo), "GET", "/v1/models/a/b").json()["path"] == "/v1/models/a/b"


def test_the_front_has_the_routes_of_a_server_without_replicas():
    whole, front = ({(route.path, method) for route in served.routes for method in route.methods}
                    for served in (app_of(), front_of(echo)))  # fmt: skip
    assert front == whole
    assert {path for path, _ in front} > {*ASKED, *READ}


def test_a_lost_replica_that_said_nothing_is_replaced_by_another():
    tried = []

    async def ask(call: Call) -> AsyncGenerator[Any, None]:
        tried.append(call)
        if len(tried) <= RETRIES:
            raise LostReplica
        yield [HEAD, said("{}")]

    app = front_of(ask)
    assert call(app, "POST", "/v1/completions", json=BODY).status_code == 200
    assert len(tried) == RETRIES + 1
    assert "maypole_lost_replicas_total 3.0" in call(app, "GET", "/metrics").text


def test_a_request_that_loses_every_replica_fails_and_says_so():
    async def ask(call: Call) -> AsyncGenerator[Any, None]:
        raise LostReplica
        yield

    answer = call(front_of(ask), "POST", "/v1/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")


def test_a_stream_that_loses_its_replica_ends_with_an_error_and_is_not_asked_again():
    tried = []

    async def ask(call: Call) -> AsyncGenerator[Any, None]:
        tried.append(call)
        yield [STREAM, said("data: {}\n\n", True)]
        raise LostReplica

    lines = call(front_of(ask), "POST", "/v1/completions", json={**BODY, "stream": True}).text.split("\n\n")
    assert lines[0] == "data: {}"
    assert json.loads(lines[1].removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert len(tried) == 1


def test_a_replica_is_told_when_its_client_leaves_or_time_is_over():
    ended = []

    async def ask(call: Call) -> AsyncGenerator[Any, None]:
        try:
            await asyncio.sleep(60)
            yield []
        finally:
            ended.append(call.path)

    answer = call(front_of(ask, limits=Limits(timeout=-0.95)), "POST", "/v1/completions", json=BODY)
    assert (answer.status_code, ended) == (408, ["/v1/completions"])


def test_keys_and_hosts_and_sizes_are_checked_before_a_replica_is_asked():
    async def ask(call: Call) -> AsyncGenerator[Any, None]:
        raise AssertionError
        yield

    app = front_of(ask, keys=("secret",), limits=Limits(max_body_bytes=100))
    assert call(app, "POST", "/v1/completions", json=BODY).status_code == 401
    known = {"Authorization": "Bearer secret"}
    assert call(app, "POST", "/v1/completions", json={**BODY, "prompt": "x" * 200}, headers=known).status_code == 413
    assert call(app, "POST", "/v1/completions", content=b"{", headers=known).status_code == 400
    assert call(app, "GET", "/v1/models", headers={**known, "Host": "evil.example"}).status_code == 400
    app = front_of(ask, limits=Limits(max_queue=2))
    assert call(app, "POST", "/v1/completions", json={**BODY, "n": 3}).status_code == 400


def test_only_models_that_a_replica_served_are_counted_by_name():
    app = front_of(echo)
    assert call(app, "POST", "/v1/completions", json=BODY).status_code == 200
    assert call(app, "POST", "/tokenize", json={"model": "made-up", "prompt": "x"}).status_code == 200
    counted = call(app, "GET", "/metrics").text
    assert 'model="tiny"' in counted
    assert "made-up" not in counted


def test_health_is_that_of_the_replicas():
    assert call(front_of(echo), "GET", "/health").status_code == 200
    assert call(front_of(echo, running=dict), "GET", "/health").status_code == 503
    assert call(front_of(echo, running=dict), "GET", "/live").status_code == 200


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"replicas": 2}, "--ray"),
        ({"replicas": 0}, "replicas"),
        ({"ray": "local", "allow_dynamic": True, "adapters": "x"}, "--allow-dynamic"),
    ],
)
def test_options_that_cannot_go_together_are_refused(options: dict[str, Any], named: str):
    with pytest.raises(UserError, match=named):
        ServeOptions(model="m", **options)
