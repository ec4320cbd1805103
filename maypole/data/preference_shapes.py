"""Shapes of the public sets of rated and compared answers, each row as its publisher has it.

A set with a score for every answer makes a pair of every two whose scores differ; answers that are called equally good
make none. Knows nothing about files.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from maypole.data.rows import PAIR, PROMPT, SAMPLES
from maypole.data.shape import Lossy, Row, Shape, message, string


def _pair(prompt: Any, good: Any, bad: Any, scores: tuple[float, float] | None = None) -> dict[str, Any]:
    told = {} if scores is None else {"chosen_score": scores[0], "rejected_score": scores[1]}
    return {"prompt": prompt, "chosen": _answer(prompt, good), "rejected": _answer(prompt, bad)} | told


def _answer(prompt: Any, answer: Any) -> Any:
    """A message where the prompt is messages."""
    return answer if isinstance(prompt, str) or not isinstance(answer, str) else [message("assistant", answer)]


def _every_two(prompt: Any, answers: Sequence[str], scores: Sequence[float]) -> list[Row]:
    made: list[Row] = []
    for i, j in combinations(range(len(answers)), 2):
        good, bad = (i, j) if scores[i] > scores[j] else (j, i)
        if scores[i] != scores[j]:
            made.append(_pair(prompt, answers[good], answers[bad], (scores[good], scores[bad])))
    return made


def _rated(row: Row) -> tuple[str, list[str], list[float]]:
    """UltraFeedback's instruction, and of each answer with ratings its text and their mean.

    Its ``overall_score`` is not used: the set has answers of the worst ratings with an overall score of 10.
    """
    answers: list[str] = []
    scores: list[float] = []
    given: list[Any] = row["completions"] or []
    for number, one in enumerate(given, start=1):
        if not isinstance(one, Mapping) or not isinstance(one.get("response"), str):
            raise Lossy("completions", f"answer {number} has no text", '{"response": ..., "annotations": ...}')
        annotations: dict[str, Any] = one.get("annotations") or {}
        known = [rating for of in annotations.values() if (rating := _rating(of)) is not None]
        if known:
            answers.append(one["response"])
            scores.append(float(np.mean(known)))
    return string(row, "instruction"), answers, scores


def _rating(annotation: Any) -> float | None:
    """1 to 5; None where the annotator had none."""
    found = annotation.get("Rating") if isinstance(annotation, Mapping) else None
    try:
        return float(found)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None


def _rated_samples(row: Row) -> list[Row]:
    prompt, answers, scores = _rated(row)
    return [{"prompt": prompt, "completions": answers, "scores": scores}] if answers else []


def _helpsteer(rows: Sequence[Row]) -> list[Row]:
    """Rows of one prompt, each with an answer: pairs by helpfulness."""
    return _every_two(
        string(rows[0], "prompt"), [string(row, "response") for row in rows], [_number(r, "helpfulness") for r in rows]
    )


def _helpsteer_preference(row: Row) -> list[Row]:
    """Two answers and who is better, from -3, the first by far, to 3, the second."""
    context = row["context"] if "context" in row else row["prompt"]
    strength = _number(row, "overall_preference" if "overall_preference" in row else "preference_strength")
    first, second = (string(row, f"response_{n}" if f"response_{n}" in row else f"response{n}") for n in (1, 2))
    if strength == 0:
        return []
    good, bad = (first, second) if strength < 0 else (second, first)
    return [_pair(context, good, bad) | {"margin": abs(strength)}]


def _shp(row: Row) -> Row:
    a, b = ((string(row, f"human_ref_{x}"), _number(row, f"score_{x}")) for x in "AB")
    good, bad = (a, b) if _one_of(row, "labels", (0, 1)) else (b, a)
    return _pair(string(row, "history"), good[0], bad[0], (good[1], bad[1]))


def _safe_rlhf(row: Row) -> Row:
    better = _one_of(row, "better_response_id", (0, 1))
    return _pair(string(row, "prompt"), string(row, f"response_{better}"), string(row, f"response_{1 - better}"))


def _stack_exchange(row: Row) -> Row:
    return _pair(string(row, "question"), string(row, "response_j"), string(row, "response_k"))


def _judged(row: Row) -> Row:
    prompt, answers = row["prompt"], row["responses"]
    return {"prompt": prompt, "completions": [_answer(prompt, a) for a in answers or ()], "scores": row["rewards"]}


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Lossy(name, "expected a number", "")
    return float(value)


def _one_of(row: Row, name: str, accepted: tuple[int, ...]) -> int:
    if row[name] not in accepted:
        raise Lossy(name, f"found {row[name]!r}", f"one of {', '.join(map(str, accepted))}")
    return int(row[name])


_HELPSTEER = ("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity")
_PREFERRED = ("response_1", "response_2", "preference_strength")
_PREFERRED_3 = ("response1", "response2", "overall_preference")

PREFERENCE_SHAPES = (
    Shape(
        "UltraFeedback with its ratings", frozenset({"instruction", "completions"}), ("instruction", "completions"),
        PAIR, lambda row: _every_two(*_rated(row)),
    ),
    Shape(
        "UltraFeedback with its ratings", frozenset({"instruction", "completions"}), ("instruction", "completions"),
        SAMPLES, _rated_samples,
    ),
    Shape(
        "HelpSteer", frozenset({"prompt", "response", "helpfulness"}), _HELPSTEER,
        PAIR, _helpsteer, together="prompt",
    ),
    Shape(
        "HelpSteer2 preference", frozenset({"prompt", *_PREFERRED}), ("prompt", *_PREFERRED), PAIR,
        _helpsteer_preference,
    ),
    Shape(
        "HelpSteer3 preference", frozenset({"context", *_PREFERRED_3}), ("context", *_PREFERRED_3), PAIR,
        _helpsteer_preference,
    ),
    Shape(
        "SHP", frozenset({"history", "human_ref_A", "human_ref_B", "labels"}),
        ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"), PAIR, _shp,
    ),
    Shape(
        "PKU-SafeRLHF", frozenset({"prompt", "response_0", "response_1", "better_response_id"}),
        ("prompt", "response_0", "response_1", "better_response_id"), PAIR, _safe_rlhf,
    ),
    Shape(
        "Stack Exchange pair", frozenset({"question", "response_j", "response_k"}),
        ("question", "response_j", "response_k"), PAIR, _stack_exchange,
    ),
    Shape(
        "RLHFlow prompt", frozenset({"context_messages"}), ("context_messages",), PROMPT,
        lambda row: {"prompt": row["context_messages"]},
    ),
    Shape(
        "RLHFlow answers", frozenset({"prompt", "responses", "rewards"}), ("prompt", "responses", "rewards"), SAMPLES,
        _judged,
    ),
)  # fmt: skip
