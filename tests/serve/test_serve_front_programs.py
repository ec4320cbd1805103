"""Programs, adapters and the page before replicas, which are applications in this process."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from maypole.engine import Engine
from maypole.serve.front import create_front
from maypole.serve.guard import Limits
from maypole.serve.parrot import Session, VariableFailed
from maypole.serve.passing import RETRIES, Ask, Call, LostReplica
from maypole.serve.replica import Replica
from tests.engine.adapter_fixtures import adapted, engine_of, folder_of
from tests.engine.engine_fixtures import lm_of
from tests.serve.parrot.test_parrot_programs import join, shout
from tests.serve.serve_fixtures import app_of, call, running

LONG: dict[str, Any] = {"max_position_embeddings": 4096}


def replica_of(app: Any) -> Replica:
    """A replica that has no cluster around it."""
    replica = Replica.__new__(Replica)
    replica._app = app
    return replica


def front_of(ask: Ask, **options: Any) -> Any:
    more: dict[str, Any] = {"limits": Limits(), "running": lambda: {"one": 0}, **options}
    return create_front(ask, name="tiny", hosts=("localhost", "127.0.0.1"), **more)


@pytest.fixture(scope="module")
def single() -> Iterator[str]:
    with running(app_of(Engine(lm_of(**LONG)))) as url:
        yield url


def told(url: str, **options: Any) -> list[Any]:
    with Session(url=url, seed=3, **options) as session:
        loud = [shout(text=f"{'well ' * 30}{n}") for n in range(3)]
        return [*session.gather(loud), join(parts=loud).get("latency")]


def test_a_program_before_replicas_says_what_it_says_on_one_server(single: str):
    calls: list[Call] = []
    replica = replica_of(app_of(Engine(lm_of(**LONG)), hosts=("*",)))

    def ask(call: Call) -> AsyncGenerator[list[Any], None]:
        calls.append(call)
        return replica.answer(call)

    with running(front_of(ask)) as url:
        assert told(url) == told(single)
        with Session(url=url, seed=3) as session:
            text = shout(text="well " * 30)
            assert "".join(text.stream()) == text.get()
            session.gather([shout(text="well " * 30)])
            totals = session.explain()["totals"]
    assert [call.path for call in calls] == ["/v1/completions"] * 6
    assert len({call.chain for call in calls[:3]}) == 1, "what begins alike goes to the same place"
    assert totals["reused_tokens"] > 30
    assert totals["said_tokens"] == 12


def test_a_task_whose_replica_is_lost_is_done_by_another_and_says_the_same(single: str):
    replica, lost = replica_of(app_of(Engine(lm_of(**LONG)), hosts=("*",))), []

    async def ask(call: Call) -> AsyncGenerator[list[Any], None]:
        async with aclosing(replica.answer(call)) as answer:
            async for messages in answer:
                for message in messages:
                    # However many events come at a time: lost before the last of them is whole.
                    end = message.get("body", b"").find(b"[DONE]")
                    if end >= 0 and len(lost) < RETRIES:
                        lost.append(call)
                        yield [{**message, "body": message["body"][: end // 2]}]
                        raise LostReplica
                    yield [message]

    app = front_of(ask)
    with running(app) as url:
        assert told(url) == told(single)
    assert len(lost) == RETRIES
    assert f"maypole_lost_replicas_total {RETRIES}.0" in call(app, "GET", "/metrics").text


def test_what_no_replica_can_do_fails_its_variable_with_the_cause():
    async def gone(call: Call) -> AsyncGenerator[list[Any], None]:
        raise LostReplica
        yield []

    with running(front_of(gone)) as url, Session(url=url) as session:
        lost = shout(text="a")
        with pytest.raises(VariableFailed, match="the replicas that answered are lost"):
            lost.get()
        assert session.explain()["nodes"][0]["state"] == "failed"
    replica = replica_of(app_of(Engine(lm_of(max_position_embeddings=64)), hosts=("*",)))
    for text, tokenize, match in (("long " * 100, "rendered", "64"), ("a", "segment", "reads prompts as one text")):
        with running(front_of(replica.answer)) as url, Session(url=url, tokenize=tokenize):
            failing = shout(text=text)
            with pytest.raises(VariableFailed, match=match):
                failing.get()


def test_a_model_that_no_replica_would_serve_is_refused_at_once():
    asked: list[str] = []

    def may_ask(adapter: str) -> bool:
        asked.append(adapter)
        return False

    async def never(call: Call) -> AsyncGenerator[list[Any], None]:
        raise AssertionError
        yield []

    app = front_of(never, may_ask=may_ask)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as http:
            opened = (await http.post("/v1/sessions", json={})).json()
            body = {
                "session_id": opened["session_id"], "template": "x{{o}}", "models": ["fr"],
                "parameters": [{"name": "o", "is_output": True}],
            }  # fmt: skip
            headers = {"X-Session-Auth": opened["session_auth"]}
            return await http.post("/v1/semantic_calls", json=body, headers=headers)

    answer = asyncio.run(run())
    assert (answer.status_code, set(asked)) == (400, {"fr"})
    assert "'fr'" in answer.json()["error"]["message"]


def test_the_adapters_of_all_replicas_are_one_list(tmp_path: Path):
    folder = folder_of(tmp_path / "adapters", adapted("a", "b"))
    apps = {name: app_of(engine_of(folder), hosts=("*",)) for name in ("one", "two")}
    for model in ("a", "a", "b"):
        call(apps["one"], "POST", "/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 1})
    call(apps["two"], "POST", "/v1/completions", json={"model": "a", "prompt": "x", "max_tokens": 1})

    async def ask(call: Call) -> AsyncGenerator[list[Any], None]:
        if call.replica == "gone":
            raise LostReplica
        async for messages in replica_of(apps[call.replica]).answer(call):
            yield messages

    front = front_of(ask, running=lambda: {"one": 0, "two": 0, "gone": 0})
    found = {one["id"]: one for one in call(front, "GET", "/v1/adapters").json()["data"]}
    assert {name: one["requests"] for name, one in found.items()} == {"a": 3, "b": 1}
    assert found["b"]["replicas"] == {"one": "ready", "two": "disk"}
    assert found["b"]["state"] == "ready"
    assert found["b"]["last_used"] is not None


def test_the_page_is_there_and_what_belongs_to_one_engine_says_so():
    async def never(call: Call) -> AsyncGenerator[list[Any], None]:
        raise AssertionError
        yield []

    front = front_of(never, keys=("secret",))
    assert call(front, "GET", "/").headers["content-type"].startswith("text/html")
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert call(front, "POST", path, json={}).status_code == 401
        answer = call(front, "POST", path, json={}, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 501
        assert "--allow-dynamic" in json.loads(answer.text)["error"]["message"]
