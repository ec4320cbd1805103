import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from maypole.engine import Engine, EngineConfig, Request, Sampling
from maypole.models.saving import save
from maypole.serve.app import Limits
from tests.engine.engine_fixtures import lm_of
from tests.serve.serve_fixtures import app_of, call, running

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


def test_a_stopped_server_finishes_what_is_under_way(tmp_path: Path):
    save(lm_of(max_position_embeddings=4096), tmp_path / "tiny")
    command = [sys.executable, "-m", "maypole.cli.main", "serve", str(tmp_path / "tiny"), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = next(line.split()[-1] for line in server.stderr if "serving at" in line)
        with httpx.stream("POST", f"{url}/completions", json={**LONG, "stream": True}, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            said = [line for line in lines if line]
        assert said[-1] == "data: [DONE]"
        assert json.loads(said[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
