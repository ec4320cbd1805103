"""Replicas on a local Ray cluster of two, behind the routes of one server."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from maypole.engine import Engine, Request, Sampling
from maypole.models.saving import save
from maypole.serve.parrot import Session
from maypole.serve.replicas import open_front
from maypole.serve.verbs import ServeOptions
from tests.engine.adapter_fixtures import folder_of
from tests.engine.engine_fixtures import lm_of, with_adapters
from tests.serve.parrot.test_parrot_programs import join, shout
from tests.serve.serve_fixtures import PROMPT, running, wait_for

PREFIXES = [f"{word} " * 120 for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
LONG: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 20_000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save(lm_of(max_position_embeddings=100_000), path)
    return path


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """Two replicas of the model and its adapter a."""
    adapters = folder_of(model.parent / "adapters", with_adapters(lm_of(max_position_embeddings=100_000), "a"))
    options = ServeOptions(model=str(model), adapters=adapters, replicas=2, ray="local", threads=1)
    with open_front(options, keys=()) as front, running(front) as address:
        yield address


def asked(url: str, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "ignore_eos": True, "temperature": 0, **more}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_replicas_answer_as_one_engine_and_compute_a_prefix_once_between_them(url: str, model: Path):
    prompts = [f"{prefix}{number}" for number in range(3) for prefix in PREFIXES]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda prompt: asked(url, prompt), prompts))
    engine, sampling = Engine.load(model), Sampling(max_tokens=4, temperature=0, ignore_eos=True)
    expected = [o.text for o in engine.generate([Request(engine.encode(prompt), sampling) for prompt in prompts])]
    assert [one["choices"][0]["text"] for one in found] == expected
    reused = [one["usage"]["prompt_tokens_details"]["cached_tokens"] > 60 for one in found]
    assert reused == [False] * len(PREFIXES) + [True] * (len(prompts) - len(PREFIXES))


def test_streams_come_in_pieces_and_models_and_errors_are_those_of_a_server(url: str):
    with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "max_tokens": 50}, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 20
    assert [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]] == ["tiny", "a"]
    wrong = httpx.post(f"{url}/v1/completions", json={"model": "other", "prompt": PROMPT})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")


def test_a_client_that_leaves_frees_its_place_at_the_replica(url: str):
    with httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=60) as answer:
        lines = answer.iter_lines()  # let go of, it would close the answer
        next(lines)
        assert busy(url) == 1
    wait_for(lambda: busy(url) == 0)


def busy(url: str) -> float:
    return sum(under_way(url).values())


def under_way(url: str) -> dict[str, float]:
    """Requests that each replica has to answer."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = (line.split() for line in lines if line.startswith("maypole_replica_running"))
    return {name: float(count) for name, count in found}


def test_a_program_runs_on_the_replicas_and_says_what_it_says_on_one_engine(url: str, model: Path):
    def told(session: Session) -> list[str]:
        with session:
            parts = [shout(text=prefix) for prefix in PREFIXES]
            return [*session.gather(parts), join(parts=parts).get("latency")]

    assert told(Session(url=url, seed=1)) == told(Session(Engine.load(model), seed=1))


def test_the_list_of_adapters_comes_from_every_replica(url: str):
    asked(url, "x", model="a")
    found = httpx.get(f"{url}/v1/adapters", timeout=60).json()["data"]
    assert [(one["id"], one["state"], one["requests"]) for one in found] == [("a", "ready", 1)]
    assert sorted(found[0]["replicas"].values()) == ["disk", "ready"]


def test_a_replica_killed_under_load_loses_its_streams_clearly_and_no_other_request(url: str):
    import ray

    begun: list[int] = []
    enough = threading.Event()

    def streamed(number: int) -> str:
        """How a stream that is far too long to end ended; one that is not lost is left."""
        body, last = {**LONG, "max_tokens": 90_000, "prompt": f"stream {number}"}, ""
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
            for line in filter(None, answer.iter_lines()):
                if not last:
                    begun.append(number)
                last = line
                if enough.is_set():
                    return "left"
        return last

    with ThreadPoolExecutor(12) as pool:
        streams = []
        for number in range(4):
            streams.append(pool.submit(streamed, number))
            wait_for(lambda: len(begun) == len(streams), 120)
        wait_for(lambda: sorted(under_way(url).values()) == [2, 2], 120)  # what ran before may still be counted
        named = ray.util.list_named_actors(all_namespaces=True)
        victim = next(actor["name"] for actor in named if actor["name"].startswith("SERVE_REPLICA::"))
        wholes = [pool.submit(asked, url, f"{prefix} whole", max_tokens=200) for prefix in PREFIXES]
        ray.kill(ray.get_actor(victim, "serve"))
        texts = [whole.result() for whole in wholes]
        wait_for(lambda: sum(stream.done() for stream in streams) >= 2, 120)
        enough.set()
        ended = [stream.result() for stream in streams]
    assert all(text["usage"]["completion_tokens"] == 200 for text in texts)
    lost = [json.loads(line.removeprefix("data: "))["error"]["code"] for line in ended if line != "left"]
    assert lost == ["replica_lost"] * 2
    wait_for(lambda: "maypole_replicas 2.0" in httpx.get(f"{url}/metrics").text, 120)
