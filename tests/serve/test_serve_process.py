"""The command in a process of its own: how it ends, and that it starts again."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from maypole.models.saving import save
from tests.engine.engine_fixtures import lm_of
from tests.serve.serve_fixtures import wait_for

LONG: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 1000, "ignore_eos": True, "stream": True}
ENDLESS = {**LONG, "max_tokens": 90_000}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save(lm_of(max_position_embeddings=100_000), path)
    return path


@contextlib.contextmanager
def served(model: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of ``maypole serve`` and the URL at which it answers."""
    command = [sys.executable, "-m", "maypole.cli.main", "serve", str(model), "--threads", "1", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process, next(line.split()[-1] for line in process.stderr if "serving at" in line)
    finally:
        process.kill()
        process.communicate()


def test_a_stopped_server_finishes_what_is_under_way_and_logs_no_prompt(model: Path):
    with served(model, "--port", "0") as (process, url):
        body, metrics = {**LONG, "prompt": "marmalade"}, url.removesuffix("/v1") + "/metrics"
        with ThreadPoolExecutor() as pool, httpx.stream("POST", f"{url}/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            whole = {**body, "stream": False}
            asked = [pool.submit(httpx.post, f"{url}/completions", json=whole, timeout=30) for _ in range(4)]
            wait_for(lambda: "maypole_running 5.0" in httpx.get(metrics).text)
            process.send_signal(signal.SIGTERM)
            said = [line for line in lines if line]
            others = [one.result() for one in asked]
        assert said[-1] == "data: [DONE]"
        assert json.loads(said[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert [other.json()["usage"]["completion_tokens"] for other in others] == [LONG["max_tokens"]] * 4
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
    found = json.loads(log.splitlines()[-1])
    assert (found["route"], found["status"], found["model"]) == ("/v1/completions", 200, "tiny")
    assert "marmalade" not in log


def test_a_killed_server_starts_again_at_once_and_a_second_signal_ends_it_at_once(model: Path):
    with served(model, "--port", "0") as (process, url):
        port = url.removesuffix("/v1").rpartition(":")[2]
        with httpx.stream("POST", f"{url}/completions", json=ENDLESS, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.kill()
            process.wait()
            with pytest.raises(httpx.TransportError):
                list(lines)
    with served(model, "--port", port) as (process, again):
        assert again == url
        with httpx.stream("POST", f"{url}/completions", json=ENDLESS, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: not _listens(url))  # two signals at the same moment are one
            assert next(line for line in lines if line)  # it goes on
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 128 + signal.SIGTERM


def _listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models").status_code > 0
    except httpx.TransportError:
        return False
