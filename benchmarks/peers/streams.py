"""For locust: users who read streamed completions, each its next as soon as it has the last, until all are answered.

The file named by $WORK says what to ask; the texts are written beside it, to answers.json. Knows nothing about what
serves.
"""

import json
import os
import signal
import time
from collections import deque
from pathlib import Path

import gevent
from locust import HttpUser, constant, task  # pyright: ignore[reportMissingImports] (of the extra `bench`)

_file = Path(os.environ["WORK"])
_work = json.loads(_file.read_text())
_left = deque(enumerate(_work["prompts"]))
_answers: dict[int, str] = {}


class Reader(HttpUser):
    """One connection; locust counts its requests by the seconds to their last and first token."""

    wait_time = constant(0)

    @task
    def read(self) -> None:
        if not _left:
            gevent.sleep(0.05)
            return
        at, prompt = _left.popleft()
        body = {"model": "model", "prompt": prompt, "max_tokens": _work["new"], "temperature": 0.0, "stream": True}
        begin, parts = time.perf_counter(), []
        with self.client.post("/v1/completions", json=body, stream=True, name="whole", catch_response=True) as answer:
            for line in answer.iter_lines(chunk_size=None):  # pyright: ignore[reportArgumentType] (as they come)
                if not line or line == b"data: [DONE]":
                    continue
                if not parts:
                    self._count_first(time.perf_counter() - begin)
                parts.append(json.loads(line.removeprefix(b"data: "))["choices"][0]["text"])
        _answers[at] = "".join(parts)
        if len(_answers) == len(_work["prompts"]):
            (_file.parent / "answers.json").write_text(json.dumps([_answers[i] for i in range(len(_answers))]))
            signal.raise_signal(signal.SIGTERM)  # locust ends well; its runner cannot be ended by one of its users

    def _count_first(self, seconds: float) -> None:
        self.environment.events.request.fire(
            request_type="POST", name="first token", response_time=seconds * 1000, response_length=0, exception=None,
            context={},
        )  # fmt: skip
