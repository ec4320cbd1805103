"""Tool calls in what a model says, told piece by piece in OpenAI's form. Knows nothing about requests or connections.

A piece is a `delta`: ``content``, ``reasoning_content`` or ``tool_calls``. What begins like a call and turns out to be
none is told as text.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from transformers.utils.chat_parsing import ResponseParser

Delta = dict[str, Any]

TAGGED: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"content": "text"},
    },
}
"""The form of templates that wrap calls in <tool_call> tags (Hermes, Qwen and others), as transformers reads it."""

_THOUGHTS = ("reasoning_content", "thinking")
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)')
_TAIL = re.compile(r"\s*\}?\s*\Z")


class Reader(Protocol):
    """Reads one completion. `called` says whether there was a call in it."""

    called: bool

    def feed(self, text: str) -> list[Delta]: ...
    def finish(self) -> list[Delta]: ...


def reader_for(tokenizer: Any, tools: Sequence[Mapping[str, Any]], prompt: str) -> Callable[[], Reader]:
    """What reads answers to `prompt`, in which `tools` were offered: by the form that the tokenizer tells of calls or
    its template shows, else by looking for a lone JSON object that calls one of the tools."""
    told = getattr(tokenizer, "response_template", None)
    if told is not None:
        return lambda: Marked(told, prompt, tools)
    if "<tool_call>" in str(tokenizer.chat_template):
        return lambda: Marked(TAGGED, "", tools)
    names = {tool["function"]["name"] for tool in tools}
    return lambda: Lone(names)


class Forced:
    """A call whose JSON is that of `bodies.call_schema`, because a grammar saw to it."""

    def __init__(self) -> None:
        self.called = False
        self._text = ""
        self._told = 0

    def feed(self, text: str) -> list[Delta]:
        self._text += text
        said: list[Delta] = []
        if not self.called:
            head = _HEAD.match(self._text)
            if head is None:
                return []
            self.called, self._told = True, head.end()
            said.append(_begun(0, json.loads(head["name"])))
        tail = _TAIL.search(self._text, self._told)  # the brace that closes the whole, or one of the arguments
        return said + self._tell(len(self._text) if tail is None else tail.start())

    def finish(self) -> list[Delta]:
        if not self.called:
            return [{"content": self._text}] if self._text else []
        try:
            json.loads(self._text)
        except ValueError:  # cut off: the last brace is one of the arguments
            return self._tell(len(self._text))
        return []

    def _tell(self, end: int) -> list[Delta]:
        piece, self._told = self._text[self._told : end], max(end, self._told)
        return [_goes_on(0, piece)] if piece else []


class Lone:
    """A call that is the whole answer: a JSON object with the name of a tool and its arguments (or parameters)."""

    def __init__(self, names: set[str]) -> None:
        self.called = False
        self._names, self._text, self._plain = names, "", False

    def feed(self, text: str) -> list[Delta]:
        self._text += text
        if not self._plain and self._text.lstrip()[:1] in ("", "{"):
            return []
        self._plain = True
        return self._as_text()

    def finish(self) -> list[Delta]:
        try:
            found = json.loads(self._text)
            arguments = found.get("arguments", found.get("parameters"))
            if found.get("name") in self._names and isinstance(arguments, dict):
                self.called = True
                return _whole(0, found["name"], arguments)
        except (ValueError, AttributeError, TypeError):
            pass
        return self._as_text()

    def _as_text(self) -> list[Delta]:
        text, self._text = self._text, ""
        return [{"content": text}] if text else []


class Marked:
    """Text and calls between marks, read by transformers' parser; a call that is no JSON is told as text."""

    def __init__(self, template: Mapping[str, Any], prompt: str, tools: Sequence[Mapping[str, Any]]) -> None:
        self.called = False
        self._parser: ResponseParser | None = ResponseParser(dict(template), prefix=prompt, tools=list(tools))  # pyright: ignore[reportArgumentType]
        self._text = ""
        self._told = self._read = 0
        self._calls = 0

    def feed(self, text: str) -> list[Delta]:
        self._text += text
        return self._read_by(lambda parser: parser.feed(text))

    def finish(self) -> list[Delta]:
        return self._read_by(lambda parser: parser.finalize()[1])

    def _read_by(self, read: Callable[[ResponseParser], list[dict]]) -> list[Delta]:
        said: list[Delta] = []
        if self._parser is not None:
            try:
                self._take(read(self._parser), said)
                return said
            except (ValueError, KeyError, TypeError):
                self._parser = None
        text, self._told = self._text[self._told :], len(self._text)
        return said + ([{"content": text}] if text else [])

    def _take(self, events: Sequence[Mapping[str, Any]], said: list[Delta]) -> None:
        for event in events:
            field, kind = event["field"], event["type"]
            if kind == "region_chunk":
                self._read = self._text.find(event["text"], self._read) + len(event["text"])
                name = "content" if field == "content" else "reasoning_content" if field in _THOUGHTS else None
                if name is not None:
                    said.append({name: event["text"]})
                    self._told = self._read
            elif kind == "region_close" and field == "tool_calls":
                called = event["value"]["function"]
                said += _whole(self._calls, str(called["name"]), called["arguments"])
                self._calls += 1
                self.called, self._told = True, self._read


def message(said: Sequence[Delta]) -> dict[str, Any]:
    """The message that pieces make together."""
    calls: dict[int, dict[str, Any]] = {}
    for part in (part for delta in said for part in delta.get("tool_calls", ())):
        known = calls.setdefault(part["index"], {"function": {"name": "", "arguments": ""}})
        known.update({name: part[name] for name in ("id", "type") if name in part})
        for name, text in part["function"].items():
            known["function"][name] += text
    content = "".join(delta.get("content", "") for delta in said)
    thoughts = "".join(delta.get("reasoning_content", "") for delta in said)
    found: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    if thoughts:
        found["reasoning_content"] = thoughts
    return found | ({"tool_calls": [calls[i] for i in sorted(calls)]} if calls else {})


def joined(said: Sequence[Delta]) -> Delta:
    """Several pieces as one."""
    found: Delta = {}
    for delta in said:
        for name, value in delta.items():
            found[name] = found[name] + value if name in found else value
    return found


def _whole(index: int, name: str, arguments: Any) -> list[Delta]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return [joined([_begun(index, name), _goes_on(index, text)])]


def _begun(index: int, name: str) -> Delta:
    call = {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
    return {"tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]}


def _goes_on(index: int, arguments: str) -> Delta:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
