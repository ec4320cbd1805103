"""Outputs as OpenAI's documents, whole or chunk by chunk. Knows nothing about connections or queues."""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maypole.engine.request import Chunk, Output, Scored, Usage
from maypole.serve.tool_calls import Reader, joined, message

Top = Mapping[int, float]


@dataclass(frozen=True)
class Form:
    """What every document of one answer has in common.

    `logprobs` asks for log-probs, `reader` makes what finds tool calls in a completion, `token_ids` adds the ids.
    """

    chat: bool
    model: str
    tokenizer: Any
    logprobs: bool = False
    reader: Callable[[], Reader] | None = None
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
            choice["logprobs"] = self.listed(output.token_ids, output.logprobs, output.top_logprobs, echo)
        if self.token_ids:
            choice["token_ids"] = output.token_ids
        if not self.chat:
            return choice | {"text": (echo.text if echo else "") + output.text}
        if self.reader is None:
            return choice | {"message": {"role": "assistant", "content": output.text}}
        reader = self.reader()
        said = [*reader.feed(output.text), *reader.finish()]
        return choice | {"message": message(said), "finish_reason": _reason(output, reader)}

    def listed(
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


class Telling:
    """One completion told chunk by chunk; `output` is there once it is whole."""

    def __init__(self, form: Form, index: int, echo: Echo | None) -> None:
        self._form, self._index, self._echo = form, index, echo
        self._reader = form.reader() if form.reader else None
        self._begun = False
        self._offset = 0
        self.output: Output | None = None

    def events(self, chunk: Chunk) -> bytes:
        """What one chunk adds."""
        begin = b""
        if self._form.chat and not self._begun:
            role = {"role": "assistant", "content": ""}
            begin = self._event({"delta": role, "logprobs": None, "finish_reason": None})
        self._begun, self.output = True, chunk.output
        choice: dict[str, Any] = {"logprobs": None, "finish_reason": chunk.output and chunk.output.finish_reason}
        if self._form.logprobs and (chunk.token_ids or self._echo):
            choice["logprobs"] = self._form.listed(
                chunk.token_ids, chunk.logprobs, chunk.top_logprobs, self._echo, self._offset
            )
            said = (*self._echo.ids, *chunk.token_ids) if self._echo else chunk.token_ids
            self._offset += sum(len(self._form.token(i)) for i in said)
        if self._form.token_ids:
            choice["token_ids"] = chunk.token_ids
        if self._form.chat:
            choice["delta"] = self._delta(chunk)
            if self._reader and chunk.output:
                choice["finish_reason"] = _reason(chunk.output, self._reader)
        else:
            choice["text"] = (self._echo.text if self._echo else "") + chunk.text
        self._echo = None
        return begin + self._event(choice)

    def _delta(self, chunk: Chunk) -> dict[str, Any]:
        if self._reader is None:
            return {"content": chunk.text} if chunk.text else {}
        return joined([*self._reader.feed(chunk.text), *(self._reader.finish() if chunk.output else ())])

    def _event(self, choice: dict[str, Any]) -> bytes:
        return event(self._form.document([{"index": self._index, **choice}], streamed=True))


def _reason(output: Output, reader: Reader) -> str:
    return "tool_calls" if reader.called and output.finish_reason == "stop" else output.finish_reason


def total(outputs: Sequence[Output], n: int) -> Usage:
    """Of an answer whose prompts have `n` outputs each."""
    prompts = [output.usage for output in outputs[::n]]
    return Usage(
        sum(u.prompt_tokens for u in prompts),
        sum(output.usage.completion_tokens for output in outputs),
        sum(u.cached_tokens for u in prompts),
    )


def usage(used: Usage) -> dict[str, Any]:
    """As a document."""
    return {
        "prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
    }  # fmt: skip


def event(document: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
