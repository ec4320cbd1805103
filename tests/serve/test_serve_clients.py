"""OpenAI's own client against a real socket."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from maypole.engine import Engine, Request, Sampling
from tests.engine.engine_fixtures import TEMPLATE, lm_of
from tests.serve.serve_fixtures import PROMPT, adapted_engine, app_of, call, events_of, running

KEY = "the-key"
CHAT: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return adapted_engine()


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with running(app_of(engine, keys=(KEY,))) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def test_the_sdk_completes_and_chats_whole_and_streamed(client: openai.OpenAI, engine: Engine):
    expected = engine.generate([Request(PROMPT, Sampling(max_tokens=10, seed=3))])[0].text
    options: Any = {"model": "tiny", "max_tokens": 10, "seed": 3}
    assert client.completions.create(prompt=PROMPT, **options).choices[0].text == expected
    parts = client.completions.create(prompt=PROMPT, stream=True, **options)
    assert "".join(part.choices[0].text for part in parts) == expected
    whole = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=2, **options)
    answer = whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 10
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content
    chunks = list(
        client.chat.completions.create(messages=CHAT, stream=True, stream_options={"include_usage": True}, **options)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
    assert chunks[-1].choices == []
    used = chunks[-1].usage
    assert used is not None
    assert (used.prompt_tokens, used.total_tokens) == (whole.usage.prompt_tokens, whole.usage.total_tokens)


def test_the_sdk_lists_models_embeds_and_calls_an_adapter(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["tiny", "a", "b"]
    assert client.models.retrieve("a").id == "a"
    as_base64 = client.embeddings.create(model="tiny", input=["one", "two"])  # the SDK's own default
    as_floats = client.embeddings.create(model="tiny", input=["one", "two"], encoding_format="float")
    assert as_base64.data[1].embedding == pytest.approx(as_floats.data[1].embedding)
    assert client.completions.create(model="a", prompt="x", max_tokens=2).model == "a"


def test_the_sdk_reads_tool_calls_whole_and_streamed():
    lm = lm_of()
    lm.tokenizer.chat_template = "{% if tools %}[tools]{% endif %}" + TEMPLATE
    tools: Any = [{"type": "function", "function": {"name": "rain", "parameters": {"enum": [{"mm": 3}]}}}]
    engine = Engine(lm)
    no_space = {str(engine.encode(space)[-1]): -100 for space in " \t\n\r"}  # of which a random model would say a lot
    options: Any = {"model": "tiny", "messages": CHAT, "tools": tools, "tool_choice": "required", "max_tokens": 60,
                    "logit_bias": no_space}  # fmt: skip
    with running(app_of(engine)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        (made,) = client.chat.completions.create(**options).choices[0].message.tool_calls or ()
        assert made.type == "function"
        assert (made.function.name, json.loads(made.function.arguments)) == ("rain", {"mm": 3})
        with client.chat.completions.stream(**options) as stream:
            final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    (streamed,) = final.message.tool_calls or ()
    assert (streamed.function.name, json.loads(streamed.function.arguments)) == ("rain", {"mm": 3})


def test_every_answer_is_what_the_sdks_types_say(engine: Engine):
    """The SDK itself checks nothing of what it gets; the null that an echo begins with is not in its types."""
    app, drawn = app_of(engine), {"model": "tiny", "max_tokens": 4, "n": 2}
    chat = {**drawn, "messages": CHAT, "logprobs": True, "top_logprobs": 2}
    text = {**drawn, "prompt": [PROMPT, "b"], "logprobs": 1}
    for path, body, kind in (
        ("/v1/chat/completions", chat, openai.types.chat.ChatCompletion),
        ("/v1/completions", text, openai.types.Completion),
        ("/v1/embeddings", {"model": "tiny", "input": ["a", "b"]}, openai.types.CreateEmbeddingResponse),
    ):
        assert kind.model_validate_json(call(app, "POST", path, json=body).content, strict=True).model == "tiny"
    events = events_of(app, "/v1/chat/completions", {**chat, "stream_options": {"include_usage": True}})
    chunks = [openai.types.chat.ChatCompletionChunk.model_validate_json(json.dumps(e), strict=True) for e in events]
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    assert chunks[-1].usage is not None
    cards = call(app, "GET", "/v1/models").json()["data"]
    assert "tiny" in [openai.types.Model.model_validate(card, strict=True).id for card in cards]


def test_the_sdk_recognises_errors(client: openai.OpenAI, url: str):
    with pytest.raises(openai.NotFoundError) as found:
        client.completions.create(model="no", prompt="x")
    assert found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="x", temperature=-1)
    assert refused.value.param == "temperature"
    other = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
    with other, pytest.raises(openai.AuthenticationError):
        other.models.list()


def test_the_async_sdk_streams_side_by_side(url: str, engine: Engine):
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.completions.create(model="b", prompt="p", max_tokens=12, seed=seed, stream=True)
        return "".join([part.choices[0].text async for part in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(16)))

    expected = engine.generate([Request("p", Sampling(max_tokens=12, seed=seed), adapter="b") for seed in range(16)])
    assert asyncio.run(all_of_them()) == [o.text for o in expected]


def test_our_own_remote_engine_scores_through_the_server(url: str, engine: Engine):
    from maypole.engine import ScoreRequest

    ids = engine.encode(PROMPT)
    request = ScoreRequest(ids[:6], [ids[6:]])
    remote = Engine.connect(url, api_key=KEY)
    try:
        found, expected = remote.score([request])[0][0], engine.score([request])[0][0]
    finally:
        remote.close()
    assert json.loads(json.dumps(found.logprobs)) == pytest.approx(expected.logprobs, abs=1e-5)
    assert found.is_greedy == expected.is_greedy
