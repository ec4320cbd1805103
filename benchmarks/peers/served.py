"""A server in a process of its own and clients that ask it all at once. Knows nothing about what serves."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 300.0
"""Seconds that a server may take to come up, and an answer to arrive."""


@contextmanager
def served(command: Sequence[str], log: Path) -> Iterator[tuple[str, int]]:
    """Run `command`, in which {port} stands for a free port; gives the URL and the process id once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen([word.format(port=port) for word in command], stdout=out, stderr=out)
        try:
            _wait(process, f"{url}/v1/models", log)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait()


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_bytes(pid: int) -> int:
    """The most memory that a process had so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def completions(url: str, model: str, prompts: Sequence[str], new: int) -> list[dict[str, Any]]:
    """The answers to all prompts, asked for at the same time, each by a client of its own."""

    async def one(prompt: str) -> dict[str, Any]:
        body = {"model": model, "prompt": prompt, "max_tokens": new, "temperature": 0.0}
        body["repeat_penalty"] = 1.0  # llama.cpp's server penalises repetition unless told otherwise
        async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
            answer = await client.post(f"{url}/v1/completions", json=body)
            return answer.raise_for_status().json()

    async def everybody() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(one, prompts)))

    return asyncio.run(everybody())


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended at once:\n{log.read_text()[-2000:]}")
        try:
            if httpx.get(url, timeout=5.0, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"no server at {url}:\n{log.read_text()[-2000:]}")
