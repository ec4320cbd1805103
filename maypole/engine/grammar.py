"""Which tokens may come next where a completion must follow a grammar: llguidance's masks over the vocabulary.

Knows nothing about logits or what a grammar is for.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maypole.core.errors import ConfigError, MissingExtra, UnsupportedCapability
from maypole.engine.request import Sampling


class Follower:
    """One completion's place in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros((1, (vocabulary + 31) // 32), dtype=np.int32)
        self._vocabulary = vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        """(vocabulary,) whether each token may come next."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._mask, 0)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return bits[: self._vocabulary].astype(bool)

    def take(self, token: int) -> bool:
        """Go on by `token`, which was allowed; True where nothing but the end can follow."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


class Grammars:
    """Followers for the completions of one tokenizer, whose table is made with the first of them."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Iterable[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, sorted(ends)
        self._table: Any = None

    def follower(self, sampling: Sampling, where: str) -> Follower | None:
        """None for free text. ConfigError for a grammar that cannot be followed, UnsupportedCapability and
        MissingExtra where none can be; `where` names the request."""
        kind = sampling.structure
        if kind is None:
            return None
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise MissingExtra("serve", "structured output") from error
        if sampling.min_tokens:
            raise ConfigError("min_tokens", sampling.min_tokens, "0 where the output follows a grammar")
        if self._table is None:
            if not getattr(self._tokenizer, "is_fast", False):
                raise UnsupportedCapability("structured output needs a fast tokenizer", where, "tokenizer.json")
            if not self._ends:
                raise UnsupportedCapability("structured output needs a token that ends it", where, "an eos token")
            self._table = llguidance.hf.from_tokenizer(
                self._tokenizer, n_vocab=self._vocabulary, eos_token=list(self._ends)
            )
        grammar = _grammar(sampling, kind)
        wrong = llguidance.LLMatcher.validate_grammar(grammar, self._table)
        if wrong:
            raise ConfigError(kind, getattr(sampling, kind), f"what llguidance can follow ({_first_line(wrong)})")
        return Follower(llguidance.LLMatcher(self._table, grammar), self._vocabulary)


def _grammar(sampling: Sampling, kind: str) -> str:
    from llguidance import LLMatcher

    if kind == "regex":
        return LLMatcher.grammar_from_regex(str(sampling.regex))
    if kind == "lark":
        return LLMatcher.grammar_from_lark(str(sampling.lark))
    if kind == "choice":
        options = " | ".join(json.dumps(text, ensure_ascii=False) for text in sampling.choice or ())
        return LLMatcher.grammar_from_lark(f"start: {options}")
    schema: Any = {"type": "object"} if kind == "json_object" else sampling.json_schema
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        return LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except (ValueError, TypeError) as error:
        raise ConfigError(kind, schema, f"a JSON schema ({_first_line(str(error))})") from error


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]
