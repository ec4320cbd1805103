"""An engine behind HTTP: what is sent, what is understood, what is tried again, and what is refused unsent."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from maypole.core.errors import ConfigError, RemoteError, UnsupportedCapability, UserError
from maypole.engine import Engine, RemoteEngine, Request, Sampling, ScoreRequest


class Endpoint:
    """A server that records what it is asked and answers in order from `answers`, then as a healthy one."""

    def __init__(self, owner: str = "vllm", answers: list[Any] | None = None) -> None:
        self.owner, self.answers, self.asked = owner, list(answers or []), []
        self.running = self.most = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            models = [{"id": name, "owned_by": self.owner} for name in ("base", "tuned")]
            return httpx.Response(200, json={"data": models})
        document = json.loads(request.content)
        self.asked.append((request.url.path, document, dict(request.headers)))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if request.url.path.endswith("embeddings"):
            rows = [{"index": i, "embedding": [float(i), 1.0]} for i in range(len(document["input"]))]
            return httpx.Response(200, json={"data": rows[::-1]})
        if document.get("echo"):
            n = len(document["prompt"])
            logprobs = {
                "token_logprobs": [None, *([-0.5] * (n - 1))],
                "top_logprobs": [None, *([{"x": -0.5}] * (n - 1))],
            }
            return httpx.Response(200, json={"choices": [{"index": 0, "text": "", "logprobs": logprobs}]})
        choices = [
            {"index": i, "text": f"{document.get('prompt')}!{i}", "finish_reason": "stop",
             "logprobs": {"token_logprobs": [-1.0, -2.0]}, "token_ids": [7, 8]}
            for i in range(document["n"])
        ]  # fmt: skip
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
        return httpx.Response(200, json={"choices": choices[::-1], "usage": usage})


@pytest.fixture
def connect():
    made: list[RemoteEngine] = []

    def connect(endpoint: Callable[..., Any], **options: Any) -> RemoteEngine:
        options = {"backoff": 0.001, "transport": httpx.MockTransport(endpoint), **options}
        made.append(Engine.connect("http://here:8000/v1/", **options))
        return made[-1]

    yield connect
    for engine in made:
        engine.close()


def test_completions_come_in_the_order_of_the_requests_with_their_samples(connect):
    endpoint = Endpoint()
    engine = connect(endpoint, api_key="secret", concurrency=3)
    found = engine.generate([Request(f"p{i}", Sampling(n=2, seed=i)) for i in range(8)])
    assert [(o.text, o.index) for o in found] == [(f"p{i}!{k}", k) for i in range(8) for k in range(2)]
    first = found[0]
    assert (first.token_ids, first.logprobs, first.finish_reason) == ([7, 8], [-1.0, -2.0], "stop")
    assert (first.usage.prompt_tokens, first.usage.cached_tokens) == (3, 1)
    assert endpoint.most <= 3
    assert all(headers["authorization"] == "Bearer secret" for _, _, headers in endpoint.asked)
    assert engine.url == "http://here:8000/v1"
    assert engine.adapters == ("tuned",)


def test_messages_adapters_and_settings_are_sent_in_the_words_of_the_api(connect):
    endpoint = Endpoint()
    engine = connect(endpoint)
    chat = {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "length",
                         "logprobs": {"content": [{"logprob": -0.25}]}}], "usage": {}}  # fmt: skip
    endpoint.answers = [httpx.Response(200, json=chat)]
    asked = Sampling(max_tokens=5, top_k=3, json_schema={"type": "object"}, stop="x", logit_bias={4: 1.0})
    output = engine.generate([Request([{"role": "user", "content": "a"}], asked, adapter="tuned")])[0]
    assert (output.text, output.logprobs, output.finish_reason) == ("hi", [-0.25], "length")
    path, sent, _ = endpoint.asked[0]
    assert path == "/v1/chat/completions"
    assert sent["messages"] == [{"role": "user", "content": "a"}]
    assert (sent["model"], sent["max_tokens"], sent["top_k"], sent["stop"]) == ("tuned", 5, 3, ["x"])
    assert (sent["logit_bias"], sent["logprobs"]) == ({"4": 1.0}, True)
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "min_p" not in sent


def test_scores_and_vectors(connect):
    engine = connect(Endpoint())
    scored = engine.score([ScoreRequest([1, 2, 3], [[4, 5], [6]])])
    assert [[s.sum for s in row] for row in scored] == [[-1.0, -0.5]]
    assert scored[0][0].is_greedy
    vectors = engine.embed([f"text {i}" for i in range(70)])
    assert vectors.shape == (70, 2)
    assert vectors[:, 0].tolist() == [*range(64), *range(6)]
    assert vectors.dtype == np.float32


def test_a_stream_ends_with_the_whole_output(connect):
    events = [
        {"choices": [{"index": 0, "text": "a", "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "b", "logprobs": {"token_logprobs": [-2.0]}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 2}},
    ]
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    engine = connect(Endpoint(answers=[httpx.Response(200, text=lines), httpx.Response(400, json={"error": "no"})]))

    async def collect() -> list[Any]:
        return [chunk async for chunk in engine.stream(Request("p"))]

    chunks = asyncio.run(collect())
    assert [c.text for c in chunks] == ["a", "b"]
    assert (chunks[-1].output.text, chunks[-1].output.logprobs) == ("ab", [-1.0, -2.0])
    with pytest.raises(RemoteError, match="400"):
        asyncio.run(collect())


def test_what_passes_is_tried_again_and_what_stays_is_an_error_at_once(connect):
    busy = httpx.Response(429, headers={"Retry-After": "0"}, json={"error": {"message": "later"}})
    endpoint = Endpoint(answers=[busy, httpx.ConnectError("refused"), httpx.Response(503, text="starting")])
    engine = connect(endpoint)
    assert engine.generate([Request("p")])[0].text == "p!0"
    assert len(endpoint.asked) == 4
    endpoint.answers = [httpx.Response(400, json={"error": {"message": "too long"}})]
    with pytest.raises(RemoteError, match="400: too long") as caught:
        engine.generate([Request("p")])
    assert not caught.value.retryable
    assert len(endpoint.asked) == 5
    endpoint.answers = [httpx.Response(500)] * 6
    with pytest.raises(RemoteError) as caught:
        engine.generate([Request("p")])
    assert caught.value.retryable
    for nonsense in (httpx.Response(200, text="<html>"), httpx.Response(200, json=[]), httpx.Response(200, json={})):
        endpoint.answers = [nonsense]
        with pytest.raises(RemoteError, match="answered"):
            engine.generate([Request("p")])


def test_what_the_endpoint_is_not_known_to_do_is_refused_unsent(connect):
    endpoint = Endpoint(owner="somebody")
    engine = connect(endpoint)
    for request, named in (
        (Request("p", Sampling(top_k=3)), "extended"),
        (Request("p", Sampling(regex="a")), "grammars"),
        (Request("p", Sampling(typical_p=0.5)), "typical_p"),
        (Request("p", Sampling(logprobs=2)), "logprobs"),
        (Request([1, 2, 3]), "ids"),
    ):
        with pytest.raises(UnsupportedCapability, match=named):
            engine.generate([Request("p"), request])
    with pytest.raises(UnsupportedCapability, match="embed"):
        engine.embed(["a"])
    with pytest.raises(UserError, match="no model 'other'"):
        engine.generate([Request("p", adapter="other")])
    with pytest.raises(UnsupportedCapability, match="grammars"):  # vLLM would read no field of that name
        connect(Endpoint(owner="vllm")).generate([Request("p", Sampling(regex="a"))])
    assert endpoint.asked == []
    told = connect(endpoint, capabilities=["extended"])
    assert told.generate([Request("p", Sampling(top_k=3))])[0].text == "p!0"
    with pytest.raises(ConfigError, match="accepted: embed"):
        connect(endpoint, capabilities=["magic"])
    with pytest.raises(ConfigError, match="--url"):
        Engine.connect("here:8000")
    with pytest.raises(RemoteError, match="ConnectError"):
        Engine.connect("http://127.0.0.1:9", retries=0)


def test_requests_keep_to_the_rate(connect, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(0)

    engine = connect(Endpoint(), requests_per_minute=60)
    monkeypatch.setattr("maypole.engine.remote.asyncio.sleep", sleep)
    engine.generate([Request("p") for _ in range(5)])
    turns = sorted(wait for wait in waits if wait > 0.5)
    assert len(turns) >= 4
    assert turns[-1] > 3.5
