"""What requests become before anything runs: ids, lengths, grammars and sequences, all checked. Knows no queue.

One intake belongs to one model and its tokenizer, and may be used from any thread.
"""

from collections.abc import Callable, Sequence

import numpy as np

from maypole.engine import inputs
from maypole.engine.detokenizer import Detokenizer
from maypole.engine.grammar import Grammars
from maypole.engine.prefix_tree import Ids
from maypole.engine.request import Chunk, Request, ScoreRequest, Target, is_ids
from maypole.engine.sequence import Sequence as Running
from maypole.models.language_model import LanguageModel

Listener = Callable[[Running, Chunk], None]


class Intake:
    """Of requests for `lm`, a decoder or an encoder with `vocabulary` embeddings.

    Errors name a request by its `index` in the call.
    """

    def __init__(self, lm: LanguageModel, vocabulary: int, *, decoder: bool) -> None:
        self._lm, self._vocabulary, self._decoder = lm, vocabulary, decoder
        self._ends = inputs.end_tokens(lm)
        self._grammars = Grammars(lm.tokenizer, vocabulary, self._ends)

    def encode(self, request: Request, index: int) -> Ids:
        """The prompt's ids (n,)."""
        return inputs.encode(request, self._lm.tokenizer, index, self._vocabulary)

    def prompt(self, request: Request, index: int, *, more: int = 0) -> Ids:
        """The prompt's ids (n,), which leave the context room for `more` tokens."""
        ids = self.encode(request, index)
        inputs.check_length(len(ids) + more, self._lm.max_length, index)
        return ids

    def sequences(
        self, request: Request, index: int, target: Target | None, listener: Listener | None,
        attentive: Callable[[], bool],
    ) -> list[Running]:
        """The n completions of a request, to be run by the adapter `target`; the rest as Sequence has it."""
        sampling = request.sampling
        inputs.check_sampling(sampling, self._vocabulary, index)
        prompt = self.prompt(request, index, more=int(sampling.max_tokens > 0))
        limit = min(sampling.max_tokens, self._lm.max_length - len(prompt))
        made: list[Running] = []
        for sample in range(sampling.n):
            text = Detokenizer(self._lm.tokenizer, tuple(sampling.stop), sampling.skip_special_tokens)
            grammar = self._grammars.follower(sampling, f"request {index}")
            made.append(Running(request, sample, prompt, limit, target, self._ends, text, listener, attentive, grammar))
        return made

    def scored(self, request: ScoreRequest, index: int) -> list[tuple[Ids, int]]:
        """(ids, index of the first scored token) of each continuation."""
        return inputs.scored(request, self._lm.tokenizer, self._lm.max_length, self._vocabulary, index)

    def text(self, text: str | Sequence[int], index: int, *, truncate: bool) -> Ids:
        """The ids (n,) of a text to embed; an encoder's own special tokens stand at both ends."""
        longest, tokenizer = self._lm.max_length, self._lm.tokenizer
        if self._decoder or is_ids(text):
            ids = self.encode(Request(text), index)
        else:
            ids = np.asarray(tokenizer(str(text), truncation=truncate, max_length=longest)["input_ids"])
        if truncate:
            return ids[:longest]
        inputs.check_length(len(ids), longest, index)
        return ids
