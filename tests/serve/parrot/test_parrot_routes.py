import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from maypole.engine import Engine
from maypole.serve.guard import Limits
from maypole.serve.parrot.sessions import SessionLimits
from tests.engine.engine_fixtures import lm_of
from tests.serve.serve_fixtures import app_of, running

LONG: dict[str, Any] = {"max_position_embeddings": 4096}
OUT = {"name": "out", "is_output": True, "sampling": {"max_tokens": 4, "temperature": 0}}


class Client:
    """A session of one client, on the loop of the test."""

    def __init__(self, http: httpx.AsyncClient, opened: dict[str, Any]) -> None:
        self.http, self.id = http, opened["session_id"]
        self.headers = {"X-Session-Auth": opened["session_auth"]}

    async def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        answer = await self.http.request(method, path, headers=self.headers, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def call(self, *sources: dict[str, Any], status: int = 200, out: dict[str, Any] = OUT, **fields: Any) -> Any:
        made = [{"name": f"i{n}", "is_output": False, **source} for n, source in enumerate(sources)]
        template = "x" + "".join(f"{{{{i{n}}}}}" for n in range(len(made))) + "{{out}}"
        body = {"session_id": self.id, "template": template, "parameters": [*made, out], **fields}
        return await self.ask("POST", "/v1/semantic_calls", status, json=body)


def with_client(test: Callable[[Client], Awaitable[Any]], app: Any = None, **options: Any) -> Any:
    """What `test` gives, with a session of the application."""
    app = app or app_of(Engine(lm_of(**LONG)), **options)

    async def run() -> Any:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as http:
            return await test(Client(http, (await http.post("/v1/sessions", json={"seed": 1})).json()))

    return asyncio.run(run())


def output(answer: dict[str, Any]) -> str:
    return next(p["var_id"] for p in answer["parameters"] if p["is_output"])


def test_a_call_may_take_an_output_that_has_no_value_yet():
    async def test(client: Client) -> None:
        first = await client.call({"value": "hello"}, name="greet")
        second = await client.call({"var_id": output(first)})
        assert second["parameters"][0]["var_id"] == output(first)
        found = await client.ask("GET", f"/v1/variables/{output(second)}?criteria=latency")
        assert (found["id"], found["name"]) == (output(second), "out")
        assert found["usage"]["completion_tokens"] == 4
        assert 0 <= found["timings"]["ready"] <= found["timings"]["placed"] <= found["timings"]["ended"]
        earlier = await client.ask("GET", f"/v1/variables/{output(first)}")
        assert isinstance(earlier["content"], str)

    with_client(test)


def test_a_call_says_what_a_plain_completion_says():
    async def test(client: Client) -> None:
        made = output(await client.call({"value": "hello"}))
        body = {"model": "tiny", "prompt": "xhello", "max_tokens": 4, "temperature": 0}
        plain = (await client.ask("POST", "/v1/completions", json=body))["choices"][0]["text"]
        assert (await client.ask("GET", f"/v1/variables/{made}"))["content"] == plain

    with_client(test)


def test_a_batch_may_take_from_its_own_calls():
    async def test(client: Client) -> None:
        hole = {"name": "a", "is_output": False}
        calls = [
            {"template": "x{{a}}{{out}}", "parameters": [{**hole, "of": {"call": 1, "name": "out"}}, OUT]},
            {"template": "x{{a}}{{out}}", "parameters": [{**hole, "value": "v"}, {**OUT, "criteria": "latency"}]},
        ]
        body = {"session_id": client.id, "calls": calls}
        made = (await client.ask("POST", "/v1/semantic_calls/batch", json=body))["calls"]
        assert made[0]["parameters"][0]["var_id"] == output(made[1])
        graph = await client.ask("GET", f"/v1/sessions/{client.id}/graph")
        assert [node["column"] for node in graph["nodes"]] == [0, 1]
        assert graph["nodes"][0]["objective"] == "latency"
        assert (await client.ask("GET", f"/v1/variables/{output(made[0])}"))["content"] is not None
        calls[1]["parameters"][0] = {**hole, "of": {"call": 0, "name": "out"}}
        refused = await client.ask("POST", "/v1/semantic_calls/batch", 400, json=body)
        assert refused["error"]["param"] == "a"
        assert "circle" in refused["error"]["message"]
        assert len((await client.ask("GET", f"/v1/sessions/{client.id}/graph"))["nodes"]) == 2

    with_client(test)


def test_a_batch_may_be_answered_with_its_values_as_they_come():
    async def test(client: Client) -> None:
        call = {"template": "x{{out}}", "parameters": [OUT]}
        bad = {"template": "y{{out}}", "parameters": [{**OUT, "transforms": ["json_field:/a"]}]}
        body = {"session_id": client.id, "calls": [call, bad]}
        got = [{"call": 0, "name": "out"}, {"call": 1, "name": "out"}]
        path = "/v1/semantic_calls/batch"
        answer = await client.http.post(path, json={**body, "get": got}, headers=client.headers)
        submitted, *values = events(answer.text)
        ids = [output(made) for made in submitted["calls"]]
        found = {value["id"]: value for value in values}
        assert found[ids[0]]["usage"]["completion_tokens"] == 4
        assert found[ids[1]]["error"]["code"] == "variable_failed"
        for wrong in ({"call": 2, "name": "out"}, {"call": 0, "name": "in"}):
            refused = await client.ask("POST", path, 400, json={**body, "get": [wrong]})
            assert refused["error"]["param"] == "get"
        assert len((await client.ask("GET", f"/v1/sessions/{client.id}/graph"))["nodes"]) == 2

    with_client(test)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"template": "x {{1a}} {{out}}"}, "template"),
    ({"template": "x {{b}} {{out}}"}, "b"),
    ({"template": "x {{out}} {{out}}"}, "out"),
    ({"template": "x {{out}}{{o2}}", "parameters": [OUT, {**OUT, "name": "o2"}]}, "o2"),
    ({"template": "x {{out}}", "parameters": [OUT, OUT]}, "out"),
    ({"parameters": [{**OUT, "var_id": "var-1-1"}]}, "parameters.0"),
    ({"parameters": [{**OUT, "value": "x"}]}, "parameters.0"),
    ({"parameters": [{"name": "out", "is_output": False}]}, "parameters.0"),
    ({"parameters": [{"name": "out", "is_output": False, "value": "x", "var_id": "y"}]}, "parameters.0"),
    ({"parameters": [{**OUT, "transforms": ["eval:1"]}]}, "out"),
    ({"parameters": [{**OUT, "sampling": {"regex": "a", "choice": ["a"]}}]}, "choice"),
    ({"parameters": [{**OUT, "sampling": {"max_tokens": 400}}]}, "out"),
    ({"tokenize": "words"}, "tokenize"),
    ({"cache_scope": "all"}, "cache_scope"),
]


@pytest.mark.parametrize(("change", "field"), WRONG)
def test_a_wrong_call_is_refused_by_field_and_changes_nothing(change: dict[str, Any], field: str):
    async def test(client: Client) -> None:
        body = {"session_id": client.id, "template": "x {{out}}", "parameters": [OUT], **change}
        refused = await client.ask("POST", "/v1/semantic_calls", 400, json=body)
        assert refused["error"]["param"] == field
        assert not (await client.ask("GET", f"/v1/sessions/{client.id}/graph"))["nodes"]

    with_client(test, limits=Limits(max_tokens=200))


def test_an_unknown_model_or_variable_is_refused():
    async def test(client: Client) -> None:
        assert "no model" in (await client.call(models=["other"], status=400))["error"]["message"]
        assert (await client.call({"var_id": "var-x-0"}, status=400))["error"]["param"] == "i0"
        made = await client.call(models=["other", "tiny"])
        assert (await client.ask("GET", f"/v1/variables/{output(made)}"))["content"]

    with_client(test)


def test_a_session_belongs_to_who_opened_it():
    app = app_of(Engine(lm_of(**LONG)), keys=("k1", "k2"))

    async def run() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            first = {"Authorization": "Bearer k1"}
            opened = (await http.post("/v1/sessions", json={}, headers=first)).json()
            path = f"/v1/sessions/{opened['session_id']}/graph"
            auth = {"X-Session-Auth": opened["session_auth"]}
            assert (await http.get(path, headers=auth | first)).status_code == 200
            for headers in (first, auth | {"Authorization": "Bearer k2"}, first | {"X-Session-Auth": "x"}):
                answer = await http.get(path, headers=headers)
                assert answer.status_code == 404
                assert answer.json()["error"]["code"] == "unknown"

    asyncio.run(run())


def test_an_input_may_be_set_later_and_only_once():
    async def test(client: Client) -> None:
        made = await client.ask("POST", "/v1/variables", json={"session_id": client.id, "name": "doc"})
        call = await client.call({"var_id": made["var_id"]})
        late = await client.ask("GET", f"/v1/variables/{output(call)}?timeout_s=0.05", 408)
        assert late["error"]["code"] == "still_waiting"
        assert "set its inputs: doc" in late["error"]["message"]
        await client.ask("PUT", f"/v1/variables/{made['var_id']}", json={"value": "text"})
        again = await client.ask("PUT", f"/v1/variables/{made['var_id']}", 409, json={"value": "text"})
        assert (again["error"]["code"], again["error"]["param"]) == ("already_set", "doc")
        assert (await client.ask("GET", f"/v1/variables/{output(call)}"))["content"]

    with_client(test)


def test_a_failed_transform_is_424_for_all_that_depends_on_it():
    async def test(client: Client) -> None:
        bad = await client.call(out={**OUT, "transforms": ["json_field:/a"]})
        below = await client.call({"var_id": output(bad)})
        failed = await client.ask("GET", f"/v1/variables/{output(below)}", 424)
        assert failed["error"]["code"] == "variable_failed"
        assert failed["error"]["message"].startswith("depends on out: transform 'json_field:/a'")

    with_client(test)


def test_what_is_asked_of_a_variable_is_checked():
    async def test(client: Client) -> None:
        made = output(await client.call())
        for query, field in (("criteria=fast", "criteria"), ("timeout_s=-1", "timeout_s"), ("stream=yes", "stream")):
            assert (await client.ask("GET", f"/v1/variables/{made}?{query}", 400))["error"]["param"] == field
        for id in ("var-x", "x", f"var-{client.id}-99"):
            await client.ask("GET", f"/v1/variables/{id}", 404)

    with_client(test)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line and "[DONE]" not in line]


def test_a_variable_and_the_graph_can_be_followed_as_events():
    async def test(client: Client) -> None:
        path = f"/v1/sessions/{client.id}/graph?stream=true"
        watched = asyncio.ensure_future(client.http.get(path, headers=client.headers))
        await asyncio.sleep(0.05)
        made = output(await client.call({"value": "hello"}))
        told = await client.http.get(f"/v1/variables/{made}?stream=true", headers=client.headers)
        pieces = events(told.text)
        assert "".join(piece["text"] for piece in pieces) == pieces[-1]["content"]
        assert pieces[-1]["usage"]["completion_tokens"] == 4
        await client.ask("DELETE", f"/v1/sessions/{client.id}")
        seen = events((await watched).text)
        assert [e["type"] for e in seen][:: len(seen) - 1] == ["snapshot", "closed"]
        assert seen[-2]["nodes"][0]["state"] == "done"
        await client.ask("GET", f"/v1/variables/{made}", 404)

    with_client(test)


def test_a_reader_who_comes_late_is_told_what_was_said_and_then_piece_by_piece():
    async def test(client: Client) -> None:
        long = {**OUT, "sampling": {"max_tokens": 400, "temperature": 0, "regex": "[a-z]{400}"}}
        made = output(await client.call({"value": "hello"}, out=long))
        while (await client.ask("GET", f"/v1/sessions/{client.id}/graph"))["nodes"][0]["state"] != "running":
            await asyncio.sleep(0.01)
        pieces = events((await client.http.get(f"/v1/variables/{made}?stream=true", headers=client.headers)).text)
        assert len(pieces) > 20
        assert "".join(piece["text"] for piece in pieces) == pieces[-1]["content"]
        marks = pieces[-1]["timings"]
        assert marks["first_token"] < marks["ended"] / 2

    with_client(test)


def test_sessions_are_bounded_and_end_after_their_time():
    async def test(client: Client) -> None:
        full = await client.http.post("/v1/sessions", json={})
        assert full.status_code == 429
        assert full.json()["error"]["code"] == "too_many"
        await client.ask("DELETE", f"/v1/sessions/{client.id}")
        short = Client(client.http, (await client.http.post("/v1/sessions", json={"ttl_s": 0.02})).json())
        await asyncio.sleep(0.1)
        await short.ask("GET", f"/v1/sessions/{short.id}/graph", 404)

    with_client(test, sessions=SessionLimits(sessions=1))


def test_a_client_that_leaves_while_it_waits_leaves_its_session_whole():
    engine = Engine(lm_of(max_position_embeddings=100_000))
    with running(app_of(engine)) as url:

        async def run() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                client = Client(http, (await http.post("/v1/sessions", json={})).json())
                sampling = {"max_tokens": 60_000, "ignore_eos": True}
                long = output(await client.call(out={**OUT, "sampling": sampling}))
                short = output(await client.call())
                asked = asyncio.ensure_future(client.ask("GET", f"/v1/variables/{long}"))
                while not engine.stats()["running"]:
                    await asyncio.sleep(0.002)
                asked.cancel()
                assert (await client.ask("GET", f"/v1/variables/{short}"))["content"]
                assert engine.stats()["running"] == 1
                await client.ask("DELETE", f"/v1/sessions/{client.id}")
                while engine.stats()["running"]:
                    await asyncio.sleep(0.002)

        asyncio.run(asyncio.wait_for(run(), 30))


def test_tokens_of_programs_are_counted_with_the_others():
    app = app_of(Engine(lm_of(**LONG)))

    async def test(client: Client) -> None:
        made = output(await client.call({"value": "hello"}))
        await client.ask("GET", f"/v1/variables/{made}")
        text = (await client.http.get("/metrics")).text
        assert "maypole_generated_tokens_total 4.0" in text

    with_client(test, app)
