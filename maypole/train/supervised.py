"""Learning to predict given tokens: language modelling on texts, answers of prompts, assistant turns of chats.

Knows nothing about files or loops.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from transformers import PreTrainedTokenizerBase

from maypole.data.chat import Dropped, Encoded, encode_chat, encode_completion, encode_text
from maypole.data.rows import CHAT, COMPLETION, TEXT, RowType
from maypole.train.objective import Loss, Need, Segment, TokenBatch


def negative_log_likelihood(batch: TokenBatch) -> Loss:
    """-sum(w * log p) over the scored tokens: the loss of every objective in this file."""
    return Loss(-(batch.weights * batch.logps).sum())


@dataclass(frozen=True, slots=True)
class LanguageModeling:
    """Every token of a text, its end token included; a text beyond max_length goes on in the next row."""

    rows: ClassVar[RowType] = TEXT
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "tokens"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "split"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        ids = encode_text(row["text"], tokenizer)
        return Segment(ids, [1.0] * len(ids)) if len(ids) > 1 else Dropped("fewer than two tokens")

    def __call__(self, batch: TokenBatch) -> Loss:
        return negative_log_likelihood(batch)


@dataclass(frozen=True, slots=True)
class Completions:
    """The completion of each prompt, its end token included."""

    rows: ClassVar[RowType] = COMPLETION
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "tokens"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        return _segment(encode_completion(row["prompt"], row["completion"], tokenizer))

    def __call__(self, batch: TokenBatch) -> Loss:
        return negative_log_likelihood(batch)


@dataclass(frozen=True, slots=True)
class Chats:
    """Every assistant turn of a chat, its end token included."""

    rows: ClassVar[RowType] = CHAT
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "tokens"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Segment | Dropped:
        return _segment(encode_chat(row["messages"], tokenizer))

    def __call__(self, batch: TokenBatch) -> Loss:
        return negative_log_likelihood(batch)


def _segment(encoded: Encoded | Dropped) -> Segment | Dropped:
    return encoded if isinstance(encoded, Dropped) else Segment(encoded.ids, encoded.weights)
