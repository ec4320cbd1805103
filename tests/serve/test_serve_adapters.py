"""Adapters are models of their own names; a wrong one is an error with a name, and the server answers as before."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.engine.adapter_fixtures import adapted, bytes_changed, engine_of, folder_of, held_up
from tests.serve.serve_fixtures import adapted_engine, app_of, call, events_of

LOAD, UNLOAD, COMPLETE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
BODY = {"prompt": "abc", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Adapters a and b."""
    return folder_of(tmp_path / "adapters", adapted("a", "b"))


def said(app: Any, model: str) -> str:
    answer = call(app, "POST", COMPLETE, json={"model": model, **BODY})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return answer.json()["choices"][0]["text"]


def refused(app: Any, status: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = call(app, "POST", path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def cards(app: Any) -> list[tuple[str, str | None]]:
    return [(card["id"], card["parent"]) for card in call(app, "GET", "/v1/models").json()["data"]]


def adapters(app: Any) -> dict[str, dict[str, Any]]:
    return {found["id"]: found for found in call(app, "GET", "/v1/adapters").json()["data"]}


def test_adapters_are_models_and_answer_as_such(folder: Path):
    app, given = app_of(engine_of(folder)), app_of(adapted_engine())
    assert cards(app) == cards(given) == [("tiny", None), ("a", "tiny"), ("b", "tiny")]
    texts = [said(app, model) for model in ("tiny", "a", "b")]
    assert len(set(texts)) == 3
    assert texts == [said(given, model) for model in ("tiny", "a", "b")]
    assert call(app, "GET", "/v1/models/a").json()["parent"] == "tiny"
    streamed = events_of(app, COMPLETE, {"model": "b", **BODY})
    assert {event["model"] for event in streamed} == {"b"}
    assert "".join(event["choices"][0]["text"] for event in streamed) == texts[2]


def test_the_list_of_adapters_says_where_each_stands(folder: Path):
    app = app_of(engine_of(folder))
    said(app, "a")
    found = adapters(app)
    assert set(found["a"]) - {"object"} == {
        "id", "state", "rank", "bytes", "base", "sha256", "last_used", "requests"
    }  # fmt: skip
    assert (found["a"]["state"], found["a"]["rank"], found["a"]["base"], found["a"]["requests"]) == (
        "ready", 4, "tiny", 1
    )  # fmt: skip
    assert (found["b"]["state"], found["b"]["sha256"], found["b"]["last_used"]) == ("disk", None, None)


def test_metrics_count_what_adapters_cost(folder: Path):
    app = app_of(engine_of(folder, max_active=1))
    for model in ("a", "b"):
        said(app, model)
    text = call(app, "GET", "/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("maypole_"))
    assert [float(lines[f"maypole_{name}"]) for name in ("active_adapters", "adapter_loads_total")] == [1, 2]
    assert float(lines["maypole_adapter_evictions_total"]) == 1
    assert float(lines["maypole_adapter_bytes"]) > 0
    assert float(lines["maypole_adapter_load_seconds_total"]) > 0
    assert {float(lines[f'maypole_adapter_state{{state="{state}"}}']) for state in ("ready", "disk")} == {1}
    assert float(lines['maypole_requests_total{model="a",status="200"}']) == 1


def _config(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _weights(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)

    return changed


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"), "is a pickle"),
    "corrupted header": (bytes_changed(lambda data: data[:20] + b"\0\xff" + data[22:]), "damaged"),
    "endless header": (bytes_changed(lambda data: (2**40).to_bytes(8, "little") + data[8:]), "damaged"),
    "lying header": (bytes_changed(lambda data: data.replace(b"[4,32]", b"[4,99]", 1)), "damaged"),
    "truncated": (bytes_changed(lambda data: data[:-100]), "damaged"),
    "empty": (bytes_changed(lambda data: b""), "damaged"),
    "NaN": (_weights(lambda tensor: tensor * float("nan")), "not finite"),
    "oversize rank": (lambda p: None, "rank 4"),
    "another rank than it says": (_config(r=8), "ask for"),
    "DoRA": (_config(use_dora=True), "DoRA"),
    "no weights": (lambda p: (p / "adapter_model.safetensors").unlink(), "is missing"),
    "no JSON": (lambda p: (p / "adapter_config.json").write_text("{"), "cannot be used"),
    "another base": (_weights(lambda tensor: tensor[..., :9].clone()), "ask for"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_wrong_adapter_is_a_named_error_and_leaves_everybody_else_alone(folder: Path, kind: str):
    spoil, why = SPOILT[kind]
    plain = said(app_of(engine_of()), "tiny")
    spoil(folder / "b")
    app = app_of(engine_of(folder, max_rank=3 if kind == "oversize rank" else 64), dynamic=True)

    async def together() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = [{"model": m, "stream": s, **BODY} for m in ("tiny", "b") for s in (False, True)]
            return await asyncio.gather(*(client.post(COMPLETE, json=body) for body in asked))

    whole, stream, *wrong = asyncio.run(together())
    assert (whole.status_code, stream.status_code) == (200, 200)
    assert whole.json()["choices"][0]["text"] == plain
    for answer in wrong:
        assert answer.status_code == 400
        assert why in answer.json()["error"]["message"]
        assert str(folder) not in answer.text
    error = refused(app, 400, LOAD, {"lora_name": "new", "lora_path": "b"})
    assert error["param"] == "lora_path"
    assert why in error["message"]
    assert said(app, "tiny") == plain
    assert call(app, "GET", "/health").status_code == 200
    assert "new" not in adapters(app)


def test_names_that_mean_nothing_are_not_found(folder: Path):
    app = app_of(engine_of(folder), dynamic=True)
    (folder / "unfinished").mkdir()
    for name in ("nobody", "../adapters/a", "a/../b", str(folder / "a"), "a\0", "unfinished", ".", "x" * 300, "own/er"):
        error = refused(app, 404, COMPLETE, {"model": name, **BODY})
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert refused(app, 404, UNLOAD, {"lora_name": name[:256]})["param"] == "lora_name"
    unfinished = refused(app, 400, LOAD, {"lora_name": "x", "lora_path": "unfinished"})
    assert "adapter_config.json is missing" in unfinished["message"]
    assert cards(app) == [("tiny", None), ("a", "tiny"), ("b", "tiny")]


def test_adapters_are_loaded_only_where_allowed_and_never_by_a_path_as_name(folder: Path):
    closed, open_ = app_of(engine_of(folder)), app_of(engine_of(folder), dynamic=True)
    for path, body in ((LOAD, {"lora_name": "x", "lora_path": "a"}), (UNLOAD, {"lora_name": "a"})):
        assert refused(closed, 404, path, body)["type"] == "not_found_error"
    for name in ("../x", "a/b", ".hidden", "", "a\x00", "tiny"):
        refused(open_, 400, LOAD, {"lora_name": name, "lora_path": "a"})
    assert [id for id, _ in cards(open_)] == ["tiny", "a", "b"]


def test_clients_load_adapters_from_one_folder_only(folder: Path, tmp_path: Path):
    folder_of(tmp_path / "elsewhere", adapted("a"))
    (folder / "link").symlink_to(tmp_path / "elsewhere" / "a")
    (folder / "file").write_text("")
    app = app_of(engine_of(folder), dynamic=True)
    for wrong in ("../elsewhere/a", str(tmp_path / "elsewhere" / "a"), "link", ".", "/", "nowhere", "file", "a\x00",
                  "x" * 400, "own/er"):  # fmt: skip
        assert refused(app, 400, LOAD, {"lora_name": "x", "lora_path": wrong})["param"] == "lora_path", wrong
    for right in ("a", str(folder / "b")):
        assert call(app, "POST", LOAD, json={"lora_name": "x", "lora_path": right}).status_code == 200
        assert said(app, "x") == said(app, Path(right).name)
    assert [id for id, _ in cards(app)] == ["tiny", "a", "b", "link", "x"]


def test_an_adapter_is_replaced_and_unloaded_while_requests_run_and_they_finish(folder: Path):
    engine = engine_of(folder)
    app = app_of(engine, dynamic=True)
    long = {**BODY, "max_tokens": 150}

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            tasks = [asyncio.create_task(client.post(COMPLETE, json={"model": "a", **long})) for _ in range(3)]
            while engine.stats()["running"] < 3:
                await asyncio.sleep(0)
            loaded = await client.post(LOAD, json={"lora_name": "a", "lora_path": "b"})
            after = await client.post(COMPLETE, json={"model": "a", **BODY})
            gone = await client.post(UNLOAD, json={"lora_name": "a"})
            unknown = await client.post(COMPLETE, json={"model": "a", **BODY})
            return [loaded, after, gone, unknown, *await asyncio.gather(*tasks)]

    old, new = said(app_of(engine_of(folder)), "a"), said(app_of(engine_of(folder)), "b")
    loaded, after, gone, unknown, *running = asyncio.run(run())
    assert [r.status_code for r in (loaded, after, gone, unknown)] == [200, 200, 200, 404]
    assert after.json()["choices"][0]["text"] == new
    for answer in running:
        assert answer.json()["usage"]["completion_tokens"] == 150
        assert answer.json()["choices"][0]["text"].startswith(old[:-1])
    assert "a" not in adapters(app)
    assert call(app, "POST", LOAD, json={"lora_name": "a", "lora_path": "a"}).status_code == 200
    assert said(app, "a") == old


def test_a_client_that_leaves_while_its_adapter_is_on_its_way_frees_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(folder)
    app = app_of(engine)

    async def leave() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            task = asyncio.create_task(client.post(COMPLETE, json={"model": "a", **BODY}))
            while not engine.stats()["waiting"]:
                await asyncio.sleep(0)
            task.cancel()
            while engine.stats()["waiting"]:
                await asyncio.sleep(0)

    with held_up(monkeypatch, "a"):
        asyncio.run(leave())
        assert said(app, "b")
    assert said(app, "a")
