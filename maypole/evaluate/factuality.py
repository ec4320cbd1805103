"""How much of an answer is true: it is taken apart into facts, and each is checked against evidence (FActScore).

Who takes apart, who finds passages and who reads them are functions; `maypole.evaluate.fact_models` asks a language
model, `maypole.evaluate.fact_sources` has documents and graphs. Knows nothing about any of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maypole.core.errors import DataError, JudgeError
from maypole.core.identity import digest, identity
from maypole.evaluate.fact_report import VERDICTS, Atom, FactReport, Verdict

Retrieve = Callable[[str, int], Sequence[str]]
"""(query, k) -> at most k passages, the best first; none where nothing is known."""
Decompose = Callable[[list[str], list[str]], "Sequence[Sequence[str] | Facts]"]
"""(topics, texts) -> the facts of each text, which must be understood without it ("Ada was born …", never "She …")."""
Verify = Callable[[list[str], list[list[str]]], Sequence[Verdict | bool]]
"""(facts, the passages found for each) -> what they say of each; False is that of a fact that they do not support."""

DECLINES = (
    "i don't know", "i don’t know", "i do not know", "i'm sorry", "i’m sorry", "i am sorry", "sorry,", "i'm not sure",
    "i’m not sure", "i am not sure", "i cannot", "i can't", "i can’t", "i have no information", "i am not aware",
    "i'm not aware", "as an ai",
)  # fmt: skip
"""How an answer begins that declines to answer."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one text; the last `whole` of them are sentences that could not be taken apart."""

    texts: Sequence[str]
    whole: int = 0


def declines(text: str) -> bool:
    """Whether a text says nothing, or begins by saying that it will not answer."""
    start = " ".join(text.split()).casefold()
    return not start or start.startswith(DECLINES)


@dataclass(frozen=True, slots=True)
class AtomicChecker:
    """Facts of answers and what the evidence says of each, all answers of a call together.

    A fact stated twice counts once. One for which nothing is found is for `verify` to judge, which sees no passages.

    Parameters
    ----------
    retrieve
        Called with topic and fact as one query. Or a function for each topic, as `fact_sources.pages` makes them: a
        topic that has none is a DataError. None: `verify` knows by itself.
    abstains
        Answers that are neither taken apart nor checked: they state nothing.
    """

    decompose: Decompose
    verify: Verify
    retrieve: Retrieve | Mapping[str, Retrieve] | None = None
    k: int = 5
    abstains: Callable[[str], bool] = declines

    @property
    def fingerprint(self) -> str | None:
        if isinstance(self.retrieve, Mapping):
            pages = [part for title, page in self.retrieve.items() for part in (title, identity(page))]
        else:
            pages = [identity(self.retrieve)]
        parts = [*map(identity, (self.decompose, self.verify, self.abstains)), *pages]
        known = [part for part in parts if part is not None]
        return digest("facts", str(self.k), *known) if len(known) == len(parts) else None

    def check(self, topics: Sequence[str], texts: Sequence[str]) -> list[FactReport]:
        """The report of each text about its topic. JudgeError names the row of what cannot be an answer of its
        functions; DataError a topic without evidence of its own."""
        if len(topics) != len(texts):
            raise ValueError(f"{len(topics)} topics but {len(texts)} texts")
        self._know(topics)
        silent = [self.abstains(text) for text in texts]
        open_ = [i for i, nothing in enumerate(silent) if not nothing]
        found = self._facts([topics[i] for i in open_], [texts[i] for i in open_], open_)
        asked = [(i, fact) for i, facts in zip(open_, found) for fact in facts.texts]
        evidence = [self._passages(topics[i], fact) for i, fact in asked]
        verdicts = self._verdicts([fact for _, fact in asked], evidence)
        atoms: list[list[Atom]] = [[] for _ in texts]
        for (i, fact), verdict, passages in zip(asked, verdicts, evidence):
            atoms[i].append(Atom(fact, verdict, tuple(passages)))
        whole = dict(zip(open_, (facts.whole for facts in found)))
        return [
            FactReport(topic, tuple(atoms[i]), len(text.split()), silent[i], whole.get(i, 0))
            for i, (topic, text) in enumerate(zip(topics, texts))
        ]

    def _know(self, topics: Sequence[str]) -> None:
        if isinstance(self.retrieve, Mapping):
            missing = list(dict.fromkeys(topic for topic in topics if topic not in self.retrieve))
            if missing:
                named = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if missing[5:] else "")
                raise DataError(f"no document has the title {named}", field="topic", expected="titles as they stand")

    def _facts(self, topics: list[str], texts: list[str], rows: list[int]) -> list[Facts]:
        answers = list(self.decompose(topics, texts)) if texts else []
        if len(answers) != len(texts):
            raise JudgeError(f"{len(texts)} texts were taken apart into {len(answers)} lists", expected="one a text")
        return [_distinct(answer, row + 1) for answer, row in zip(answers, rows)]

    def _passages(self, topic: str, fact: str) -> list[str]:
        if self.retrieve is None:
            return []
        search = self.retrieve[topic] if isinstance(self.retrieve, Mapping) else self.retrieve
        found = list(search(f"{topic} {fact}", self.k))
        if not all(isinstance(passage, str) for passage in found):
            raise JudgeError("the retriever returned what is no text", expected="(query, k) -> at most k strings")
        return found[: self.k]

    def _verdicts(self, facts: list[str], evidence: list[list[str]]) -> list[Verdict]:
        answers = list(self.verify(facts, evidence)) if facts else []
        if len(answers) != len(facts):
            raise JudgeError(f"{len(facts)} facts got {len(answers)} verdicts", expected="one a fact")
        return [_verdict(answer, fact) for answer, fact in zip(answers, facts)]


def _distinct(answer: Any, row: int) -> Facts:
    """The facts of one text, each once, however it is spaced or written large."""
    facts = answer if isinstance(answer, Facts) else Facts(answer if isinstance(answer, list | tuple) else ())
    if not isinstance(answer, Facts | list | tuple) or not all(isinstance(text, str) for text in facts.texts):
        raise JudgeError(f"an answer was taken apart into {str(answer)[:60]!r}", f"row {row}", "a list of strings")
    parted = len(facts.texts) - facts.whole
    known: dict[str, tuple[str, bool]] = {}
    for number, text in enumerate(facts.texts):
        stated = " ".join(text.split())
        if name := stated.casefold().rstrip(" .;,"):
            known.setdefault(name, (stated, number >= parted))
    return Facts([stated for stated, _ in known.values()], sum(whole for _, whole in known.values()))


def _verdict(answer: Any, fact: str) -> Verdict:
    if isinstance(answer, bool):
        return "supported" if answer else "unknown"
    if answer not in VERDICTS:
        raise JudgeError(f"the verdict on {fact[:60]!r} is {str(answer)[:60]!r}", expected=", ".join(VERDICTS))
    return answer


@dataclass(frozen=True, slots=True)
class FactReward:
    """A checker as a Reward: the share of an answer's facts that are supported, about its prompt.

    gamma: the length penalty of FActScore, if any. silence: the reward of an answer that states no fact. At 0 silence
    never beats an answer of which anything is right.
    """

    checker: AtomicChecker
    gamma: float | None = None
    silence: float = 0.0

    def __call__(self, prompts: list, completions: list, **columns: list) -> list[float | None]:
        reports = self.checker.check([text_of(p) for p in prompts], [text_of(c) for c in completions])
        scores = [report.score(self.gamma) for report in reports]
        return [self.silence if score is None else score for score in scores]

    @property
    def fingerprint(self) -> str | None:
        known = self.checker.fingerprint
        return digest("fact reward", known, str(self.gamma), str(self.silence)) if known else None


def text_of(talk: Any) -> str:
    """A text, or what the last of several messages says."""
    return talk if isinstance(talk, str) else str(talk[-1]["content"])
