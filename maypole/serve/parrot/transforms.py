r"""What may be done to an output on the server before anybody sees it: a closed list, so that no client's code runs.

`strip` · `first_line` · `json_field:/a/0` (a JSON pointer, RFC 6901) · `regex:PATTERN#GROUP` (RE2, which takes linear
time whatever the pattern) · `split:SEPARATOR[INDEX]`. Knows nothing about variables.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maypole.core.errors import DataError

KNOWN = "strip, first_line, json_field:/POINTER, regex:PATTERN#GROUP, split:SEPARATOR[INDEX]"
MOST = 16
"""Transforms of one output."""
_LONGEST = 4096

Transform = Callable[[str], str]


class TransformFailed(Exception):
    """A text is not what a transform takes."""


def transform_of(specs: Sequence[str], field: str) -> Transform:
    """The transforms one after the other; DataError names `field` where one is not in the list."""
    if len(specs) > MOST:
        raise DataError(f"{len(specs)} transforms", field=field, expected=f"at most {MOST}")
    steps = [_one(spec, field) for spec in specs]

    def transform(text: str) -> str:
        for spec, step in zip(specs, steps):
            try:
                text = step(text)
            except TransformFailed as error:
                raise TransformFailed(f"transform {spec[:80]!r}: {error}") from error
        return text

    return transform


def _one(spec: str, field: str) -> Transform:
    name, _, argument = spec.partition(":")
    wrong = DataError(f"no transform {spec[:80]!r}", field=field, expected=KNOWN)
    if len(spec) > _LONGEST:
        raise wrong
    if spec == "strip":
        return str.strip
    if spec == "first_line":
        return _first_line
    if name == "json_field" and (argument == "" or argument.startswith("/")):
        return _json_field(argument)
    if name == "split" and (found := re.fullmatch(r"(.+)\[(-?\d{1,6})\]", argument, re.DOTALL)):
        return _split(found[1], int(found[2]))
    if name == "regex" and (found := re.fullmatch(r"(.+)#([0-8])", argument, re.DOTALL)):
        return _regex(found[1], int(found[2]), wrong)
    raise wrong


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _split(separator: str, index: int) -> Transform:
    def split(text: str) -> str:
        parts = text.split(separator)
        try:
            return parts[index]
        except IndexError:
            raise TransformFailed(f"there are {len(parts)} parts") from None

    return split


def _json_field(pointer: str) -> Transform:
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]

    def field(text: str) -> str:
        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError):
            raise TransformFailed("the text is not valid JSON") from None
        for step in steps:
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and re.fullmatch(r"0|[1-9]\d{0,9}", step) and int(step) < len(value):
                value = value[int(step)]
            else:
                raise TransformFailed(f"nothing at {step[:80]!r}")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return field


def _regex(pattern: str, group: int, wrong: DataError) -> Transform:
    """`group` of the first match. RE2 only replaces, so everything around the match is replaced by nothing."""
    whole = rf"\A(?s:.*?)({pattern})(?s:.*)\z"

    def search(text: str) -> str:
        texts = pa.array([text])
        if not pc.match_substring_regex(texts, pattern)[0].as_py():  # pyright: ignore[reportAttributeAccessIssue]
            raise TransformFailed("the text does not match")
        return pc.replace_substring_regex(texts, whole, rf"\{group + 1}")[0].as_py()  # pyright: ignore[reportAttributeAccessIssue]

    try:  # both the pattern and the group are checked before anything runs
        pc.match_substring_regex(pa.array([""]), pattern)  # pyright: ignore[reportAttributeAccessIssue]
        pc.replace_substring_regex(pa.array([""]), whole, rf"\{group + 1}")  # pyright: ignore[reportAttributeAccessIssue]
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise wrong from error
    return search
