import asyncio
import contextlib
import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from maypole.engine import Engine, EngineConfig, Request, Sampling
from maypole.serve.guard import Limits
from maypole.serve.running import config_of
from tests.engine.engine_fixtures import lm_of
from tests.serve.serve_fixtures import app_of, call, running, wait_for

LONG = {"model": "tiny", "prompt": "abc", "max_tokens": 400, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_sequence(stream: bool):
    engine = Engine(lm_of(max_position_embeddings=100_000))
    with running(app_of(engine)) as url:

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=url) as client:
                body = {**LONG, "max_tokens": 90_000, "stream": stream}
                asked = asyncio.ensure_future(client.post("/v1/completions", json=body))
                while not engine.stats()["running"]:
                    await asyncio.sleep(0.001)
                asked.cancel()
            while engine.stats()["running"]:
                await asyncio.sleep(0.001)

        asyncio.run(asyncio.wait_for(leave(), 20))
        assert engine.stats()["kv_tokens"] == 0
        assert httpx.post(f"{url}/v1/completions", json={**LONG, "max_tokens": 1}).status_code == 200


def test_a_thousand_requests_against_a_queue_of_a_hundred():
    engine = Engine(lm_of(), EngineConfig(max_seqs=8))
    app = app_of(engine, limits=Limits(max_queue=100))
    body = {**LONG, "max_tokens": 4}

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(1000)))

    answers = asyncio.run(all_of_them())
    served = [a for a in answers if a.status_code == 200]
    refused = [a for a in answers if a.status_code == 429]
    assert len(served) >= 100
    assert len(served) + len(refused) == 1000
    assert all(a.headers["retry-after"] == "1" for a in refused)
    assert len({a.json()["usage"]["completion_tokens"] for a in served}) == 1
    assert call(app, "POST", "/v1/completions", json=body).status_code == 200


def test_a_poisoned_request_leaves_its_neighbours_alone():
    engine = Engine(lm_of())
    app = app_of(engine)
    good = {**LONG, "max_tokens": 30, "seed": 2}
    sampling = Sampling(max_tokens=30, seed=2, ignore_eos=True)
    expected = engine.generate([Request("abc", sampling)])[0].text
    poison: list[dict[str, Any]] = [
        {"logit_bias": {"5": -100, "259": 100}}, {"top_k": 2**31}, {"temperature": 1e-300}, {"seed": -(2**63)},
        {"logprobs": 20, "min_p": 1}, {"prompt": [0, 259]}, {"prompt": "\x00\uffff"}, {"stop": "\x00"},
        {"prompt": [99999]}, {"repetition_penalty": 1e-300},
        {"repetition_penalty": 0.01}, {"temperature": 5e-324}, {"prompt": "\U0010ffff", "choice": ["\U0001f600"]},
    ]  # fmt: skip

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            bodies = [body for wrong in poison for body in (good, {**LONG, "max_tokens": 5, **wrong})]
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    answers = asyncio.run(all_of_them())
    assert [a.json()["choices"][0]["text"] for a in answers[::2]] == [expected] * len(poison)
    assert {a.status_code for a in answers[1::2]} <= {200, 400}


def test_an_answer_that_takes_too_long_is_given_up():
    engine = Engine(lm_of(max_position_embeddings=100_000))
    app = app_of(engine, limits=Limits(timeout=0.2))
    body = {**LONG, "max_tokens": 90_000}
    assert call(app, "POST", "/v1/completions", json=body).status_code == 408
    events = call(app, "POST", "/v1/completions", json={**body, "stream": True}).text.split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "timeout"


def test_work_in_a_thread_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm_of())
    held, embed, parts = threading.Event(), engine.embed, []

    def slow(texts: list, **options: Any) -> Any:
        parts.append(len(texts))
        held.wait(20)
        return embed(texts, **options)

    monkeypatch.setattr(engine, "embed", slow)
    with running(app_of(engine, limits=Limits(timeout=0.1))) as url:
        answer = httpx.post(f"{url}/v1/embeddings", json={"model": "tiny", "input": ["a"] * 100})
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")
        held.set()
        assert httpx.post(f"{url}/v1/embeddings", json={"model": "tiny", "input": "a"}).status_code == 200
    assert parts == [32, 1]


def test_two_hundred_streams_at_once_each_say_what_they_say_alone():
    engine = Engine(lm_of())
    drawn = [Sampling(max_tokens=6, seed=seed, ignore_eos=True) for seed in range(200)]
    expected = engine.generate([Request("abc", sampling) for sampling in drawn])

    async def one(client: httpx.AsyncClient, seed: int) -> str:
        body = {**LONG, "max_tokens": 6, "seed": seed, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body, timeout=60) as answer:
            lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
        assert lines[-1] == "[DONE]"
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])

    async def all_of_them(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(200)))

    with running(app_of(engine)) as url:
        assert asyncio.run(all_of_them(url)) == [output.text for output in expected]


def _asked(url: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which `body` was sent, and nothing read yet."""
    host, port = url.removeprefix("http://").split(":")
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.connect((host, int(port)))
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    found.sendall(head.encode() + text)
    return found


def test_a_slow_reader_holds_nobody_up_and_is_given_up_in_the_end():
    engine = Engine(lm_of(max_position_embeddings=100_000))
    app = app_of(engine, limits=Limits(timeout=1.0))
    with running(app, send_buffer=4096) as url:
        slow = _asked(url, {**LONG, "max_tokens": 90_000, "n": 8, "logprobs": 20, "stream": True})
        wait_for(lambda: engine.stats()["running"] == 8)
        answer = httpx.post(f"{url}/v1/completions", json={**LONG, "max_tokens": 20}, timeout=20)
        assert answer.json()["usage"]["completion_tokens"] == 20
        wait_for(lambda: engine.stats()["running"] == 0)
        wait_for(lambda: 'status="408"' in httpx.get(f"{url}/metrics").text)
        slow.close()


def test_who_leaves_in_the_middle_is_counted_and_logged_as_gone(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with running(app_of(Engine(lm_of(max_position_embeddings=100_000)))) as url:
        body = {**LONG, "max_tokens": 90_000, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        with _asked(url, LONG) as unfinished:  # a body of which half has come
            unfinished.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        wait_for(lambda: 'status="499"} 2.0' in httpx.get(f"{url}/metrics").text.replace('model="tiny",', ""))
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.getMessage().startswith("{")]
    assert [line["status"] for line in lines if line["route"] == "/v1/completions"].count(499) == 2


def test_a_storm_of_clients_that_leave_at_any_moment_leaves_nothing_behind():
    engine = Engine(lm_of(max_position_embeddings=4096), EngineConfig(max_seqs=8))
    body = {**LONG, "max_tokens": 2000}

    async def leaves(client: httpx.AsyncClient, i: int) -> None:
        asked = {**body, "stream": i % 3 > 0, "n": 1 + i % 2, "prompt": "abc" * (i % 5 + 1)}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.002 * i), client.stream("POST", "/v1/completions", json=asked) as answer:
                async for _ in answer.aiter_raw():
                    pass

    async def storm(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=None), timeout=60) as client:
            await asyncio.gather(*(leaves(client, i) for i in range(120)))
            async with asyncio.timeout(60):  # the server learns of a client's leaving after the client does
                while await statuses(client) != [200] * 200:
                    await asyncio.sleep(0.05)

    async def statuses(client: httpx.AsyncClient) -> list[int]:
        """Of as many requests at once as there are places."""
        after = [client.post("/v1/completions", json={**body, "max_tokens": 2}) for _ in range(200)]
        return [answer.status_code for answer in await asyncio.gather(*after)]

    with running(app_of(engine, limits=Limits(max_queue=200))) as url:
        asyncio.run(storm(url))
        stats = engine.stats()
    assert (stats["running"], stats["waiting"], stats["kv_tokens"]) == (0, 0, 0)


def test_an_idle_connection_is_kept_longer_than_clients_keep_theirs():
    kept = httpx.Limits().keepalive_expiry
    assert kept is not None
    assert config_of(app_of(), host="127.0.0.1", port=0).timeout_keep_alive > kept


def test_a_client_that_does_not_say_what_it_wants_is_not_waited_for():
    app = app_of(limits=Limits(read_timeout=0.2))
    with running(app, header_timeout=0.2) as url:
        host, port = url.removeprefix("http://").split(":")
        for said in (b"", b"POST /v1/completions HTTP/1.1\r\nHost: loc"):
            with socket.create_connection((host, int(port)), timeout=10) as silent:
                silent.sendall(said)
                assert silent.recv(1) == b""
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_health_fails_while_the_loop_is_stuck_in_a_step(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm_of())
    held, step = threading.Event(), engine._runner.step

    def stuck(*args: Any, **options: Any) -> Any:
        held.wait(20)
        return step(*args, **options)

    monkeypatch.setattr(engine._runner, "step", stuck)
    with running(app_of(engine, limits=Limits(stall=0.05))) as url, ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx.post, f"{url}/v1/completions", json={**LONG, "max_tokens": 2}, timeout=20)
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 503)
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/live").status_code == 200
        held.set()
        assert asked.result().status_code == 200
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 200)


def test_what_is_not_done_when_the_server_must_end_is_told_so():
    engine = Engine(lm_of(max_position_embeddings=100_000))
    app = app_of(engine)
    body = {**LONG, "max_tokens": 90_000}
    with running(app) as url, ThreadPoolExecutor() as pool:
        asked = [pool.submit(httpx.post, f"{url}/v1/completions", json={**body, "stream": stream}, timeout=20)
                 for stream in (False, True)]  # fmt: skip
        wait_for(lambda: engine.stats()["running"] == 2)
        app.state.ending.expire()
        whole, streamed = (one.result() for one in asked)
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 503
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "draining")
    last = streamed.text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "draining"
    assert call(app, "GET", "/metrics").text.count('status="503"} 2.0') == 1  # whole and streamed
    assert engine.stats()["kv_tokens"] == 0


def test_who_watches_a_program_is_told_the_end_when_the_server_must_end():
    app = app_of()
    with running(app) as url:
        session = httpx.post(f"{url}/v1/sessions", json={}).json()
        headers = {"X-Session-Auth": session["session_auth"]}
        graph = f"{url}/v1/sessions/{session['session_id']}/graph?stream=true"
        with httpx.stream("GET", graph, headers=headers) as answer:
            lines = (json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line)
            assert next(lines)["type"] == "snapshot"
            app.state.ending.expire()
            assert [event["type"] for event in lines] == ["closed"]
