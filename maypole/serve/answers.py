"""Outputs as OpenAI's documents, whole or chunk by chunk. Knows nothing about connections or queues."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maypole.engine.request import Chunk, Output, Scored

Top = Mapping[int, float]


@dataclass(frozen=True)
class Form:
    """What every document of one answer has in common.

    `logprobs` asks for log-probs, `calls` reads the text as a tool call, `token_ids` adds the ids.
    """

    chat: bool
    model: str
    tokenizer: Any
    logprobs: bool = False
    calls: bool = False
    token_ids: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def document(self, choices: list[dict[str, Any]], *, streamed: bool, **more: Any) -> dict[str, Any]:
        """The frame around choices."""
        kind = ("chat.completion" + ".chunk" * streamed) if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model,
            "choices": choices, **more,
        }  # fmt: skip

    def token(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def choice(self, index: int, output: Output, echo: "Echo | None") -> dict[str, Any]:
        """One whole completion, after the prompt where it is echoed."""
        choice: dict[str, Any] = {"index": index, "finish_reason": output.finish_reason, "logprobs": None}
        if self.logprobs:
            choice["logprobs"] = self._logprobs(output.token_ids, output.logprobs, output.top_logprobs, echo)
        if self.token_ids:
            choice["token_ids"] = output.token_ids
        if not self.chat:
            return choice | {"text": (echo.text if echo else "") + output.text}
        message: dict[str, Any] = {"role": "assistant", "content": output.text}
        call = self.call(output)
        if call is not None:
            message |= {"content": None, "tool_calls": [call]}
            choice["finish_reason"] = "tool_calls"
        return choice | {"message": message}

    def delta(self, index: int, chunk: Chunk, offset: int, echo: "Echo | None") -> dict[str, Any]:
        """What one chunk adds; `offset` is where its tokens begin in the text."""
        output = chunk.output
        choice: dict[str, Any] = {"index": index, "finish_reason": output.finish_reason if output else None}
        choice["logprobs"] = None
        if self.logprobs and (chunk.token_ids or echo):
            choice["logprobs"] = self._logprobs(chunk.token_ids, chunk.logprobs, chunk.top_logprobs, echo, offset)
        if self.token_ids:
            choice["token_ids"] = chunk.token_ids
        if not self.chat:
            return choice | {"text": (echo.text if echo else "") + chunk.text}
        if not self.calls:
            return choice | {"delta": {"content": chunk.text} if chunk.text else {}}
        call = None if output is None else self.call(output)
        if call is not None:  # a call is told whole, at its end
            choice["finish_reason"] = "tool_calls"
            return choice | {"delta": {"tool_calls": [{"index": 0, **call}]}}
        return choice | {"delta": {} if output is None else {"content": output.text}}

    def call(self, output: Output) -> dict[str, Any] | None:
        """The tool call that the text is; None where it was cut off or none was asked for."""
        if not self.calls or output.finish_reason != "stop":
            return None
        said = json.loads(output.text)
        function = {"name": said["name"], "arguments": json.dumps(said["arguments"], ensure_ascii=False)}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}

    def _logprobs(
        self,
        ids: Sequence[int],
        values: Sequence[float],
        tops: Sequence[Top] | None,
        echo: "Echo | None" = None,
        offset: int = 0,
    ) -> dict[str, Any]:
        every: list[Top | None] = list(tops) if tops is not None else [{} for _ in ids]
        if self.chat:
            return {"content": [self._entry(i, v) | {"top_logprobs": [self._entry(*t) for t in (top or {}).items()]}
                                for i, v, top in zip(ids, values, every)]}  # fmt: skip
        all_ids, all_values = list(ids), [*values]
        if echo is not None:
            all_ids, every = [*echo.ids, *all_ids], [*echo.tops, *every]
            all_values = [*echo.logprobs, *all_values]
        tokens = [self.token(i) for i in all_ids]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens, "token_logprobs": all_values, "text_offset": offsets,
            "top_logprobs": None if tops is None else [None if top is None else self._named(top) for top in every],
        }  # fmt: skip

    def _named(self, top: Top) -> dict[str, float]:
        """By text; where two tokens read the same the likelier one stands."""
        found: dict[str, float] = {}
        for token, value in top.items():
            found.setdefault(self.token(token), value)
        return found

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self.token(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}


@dataclass(frozen=True)
class Echo:
    """A prompt said back; the first token has no log-prob. Of the most likely tokens the first one is told."""

    text: str
    ids: list[int]
    logprobs: list[float | None]
    tops: list[Top | None]

    @classmethod
    def of(cls, text: str, ids: list[int], scored: Scored | None) -> "Echo":
        if scored is None:
            return cls(text, ids, [None] * len(ids), [None] * len(ids))
        tops: list[Top | None] = [
            dict([best]) if best[0] == token else {best[0]: best[1], token: value}
            for best, token, value in zip(scored.best, scored.token_ids, scored.logprobs)
        ]
        return cls(text, ids, [None, *scored.logprobs], [None, *tops])


def usage(prompts: Iterable[tuple[int, int]], generated: int) -> dict[str, Any]:
    """From (tokens, cached tokens) of every prompt."""
    told = list(prompts)
    prompt = sum(tokens for tokens, _ in told)
    return {
        "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached in told)},
    }  # fmt: skip


def event(document: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
