"""A language model that takes answers apart into facts, and one that says what a passage says of a fact.

The prompts have their evidence first and the fact last: facts about one passage share its computation. Knows nothing
about where passages come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maypole.core.errors import ConfigError, MissingExtra
from maypole.core.identity import digest
from maypole.engine import Engine, Request, Sampling
from maypole.evaluate.fact_cache import FactCache, computed
from maypole.evaluate.fact_report import Verdict
from maypole.evaluate.factuality import Facts
from maypole.evaluate.word_choice import ENDING, model_name, word_choice

NO_FACTS = "(no facts)"
"""What the model says of a sentence that states nothing to check."""
DEMONSTRATIONS = (
    (
        "Ada Lovelace",
        "Born in London in 1815, she was the daughter of the poet Lord Byron.",
        (
            "Ada Lovelace was born in London.",
            "Ada Lovelace was born in 1815.",
            "Ada Lovelace was the daughter of Lord Byron.",
            "Lord Byron was a poet.",
        ),
    ),
    ("Ada Lovelace", "I hope that this helps!", ()),
    (
        "What is Lake Baikal?",
        "It is the deepest lake in the world and lies in southern Siberia.",
        ("Lake Baikal is the deepest lake in the world.", "Lake Baikal lies in southern Siberia."),
    ),
    (
        "How does the kiwi live?",
        "The kiwi is a flightless bird of New Zealand that sleeps by day.",
        ("The kiwi is a bird.", "The kiwi cannot fly.", "The kiwi lives in New Zealand.", "The kiwi sleeps by day."),
    ),
)
"""(topic, sentence, its facts)."""
_TASK = (
    "Take the sentence apart into facts, one a line. Each must be understood by itself: name what it is about. "
    f"If the sentence states no fact, write {NO_FACTS}."
)
READ = "Read what is known and judge the claim by nothing else."
TWO, THREE = ("True", "False"), ("True", "False", "Unknown")


@dataclass(frozen=True, slots=True)
class ModelDecomposer:
    """Sentence by sentence (pysbd), by a few demonstrations and greedily; all sentences of all texts together.

    A sentence of which the model makes no list stands as one fact as it is, and is counted (`Facts.whole`): what
    cannot be taken apart is checked in one piece. The last line of a list that was cut off is left out.
    """

    engine: Engine
    cache: FactCache | None = None
    language: str = "en"
    max_tokens: int = 256

    @property
    def fingerprint(self) -> str | None:
        name = model_name(self.engine)
        return digest("decomposer", name, self.language, str(self.max_tokens), prompt_for("", "")) if name else None

    def __call__(self, topics: Sequence[str], texts: Sequence[str]) -> list[Facts]:
        split = _splitter(self.language)
        sentences = [(row, sentence) for row, text in enumerate(texts) for sentence in split(text)]
        lists = self._lists([prompt_for(topics[row], sentence) for row, sentence in sentences])
        parted: list[list[str]] = [[] for _ in texts]
        whole: list[list[str]] = [[] for _ in texts]
        for (row, sentence), facts in zip(sentences, lists):
            if facts is None:
                whole[row].append(sentence)
            else:
                parted[row] += facts
        return [Facts(parts + rest, len(rest)) for parts, rest in zip(parted, whole)]

    def _lists(self, prompts: list[str]) -> list[list[str] | None]:
        sampling = Sampling(max_tokens=self.max_tokens, temperature=0.0, stop=("\n\n", "\nTopic:"))
        name = model_name(self.engine)
        keys = [digest("facts", name or "", str(self.max_tokens), prompt) for prompt in prompts]

        def ask(places: list[int]) -> list[list[str] | None]:
            outputs = self.engine.generate([Request(prompts[i], sampling) for i in places])
            return [listed(output.text, cut=output.finish_reason == "length") for output in outputs]

        if self.cache is not None and name is not None:
            return self.cache.remember(keys, ask)
        known = computed(keys, ask)
        return [known[key] for key in keys]


def prompt_for(topic: str, sentence: str) -> str:
    """What the model continues with a list of facts; all prompts begin alike."""
    shown = [_asked(of, said) + ("\n".join(f"- {f}" for f in facts) or NO_FACTS) for of, said, facts in DEMONSTRATIONS]
    return "\n\n".join([_TASK, *shown, _asked(topic, sentence)])


def _asked(topic: str, sentence: str) -> str:
    return f"Topic: {_line(topic)}\nSentence: {_line(sentence)}\nFacts:\n"


def listed(text: str, *, cut: bool = False) -> list[str] | None:
    """The facts of a model's list, none where it says so; None where it is no list. `cut`: the last line is not whole.

    Lines before the first fact are passed over; the list ends where a line is none.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    if cut:
        lines = lines[:-1]
    if lines[:1] == [NO_FACTS]:
        return []
    begin = next((i for i, line in enumerate(lines) if line.startswith("- ")), None)
    if begin is None:
        return None
    facts: list[str] = []
    for line in lines[begin:]:
        if not line.startswith("- "):
            break
        facts.append(line.removeprefix("- ").strip())
    return [fact for fact in facts if fact] or None


@dataclass(frozen=True, slots=True)
class ModelVerifier:
    """Reads True, False (and Unknown) off a model's next-word probabilities; a fact without passages is unknown.

    Each passage is asked about apart: one that supports a fact makes it supported, one that denies it contradicted,
    one of each disputed. With `together` all passages stand in one question, the best last, and true or false is all
    that is asked, as FActScore does: then a fact is supported or unknown, and documents that contradict each other are
    the model's to weigh.
    """

    engine: Engine
    cache: FactCache | None = None
    together: bool = False

    @property
    def fingerprint(self) -> str | None:
        name = model_name(self.engine)
        asked = question(["passage"], "fact", TWO if self.together else THREE)
        return digest("verifier", name, str(self.together), asked) if name else None

    def __call__(self, facts: Sequence[str], evidence: Sequence[Sequence[str]]) -> list[Verdict]:
        known = [(i, list(passages)) for i, passages in enumerate(evidence) if passages]
        if self.together:
            asked = [(i, question(passages[::-1], facts[i], TWO)) for i, passages in known]
        else:
            asked = [(i, question([passage], facts[i], THREE)) for i, passages in known for passage in passages]
        words = TWO if self.together else THREE
        best = word_choice(self.engine, [text for _, text in asked], words, self.cache).argmax(axis=1)
        said: list[set[str]] = [set() for _ in facts]
        for (i, _), word in zip(asked, best):
            said[i].add(words[word])
        return [_verdict(some, self.together) for some in said]


def question(passages: Sequence[str], fact: str, words: Sequence[str]) -> str:
    """The evidence first: questions about the same passages share all but the fact."""
    shown = "\n".join(f"Passage: {passage}" for passage in passages)
    asked = f"{', '.join(words[:-1])} or {words[-1]}?"
    return f"{READ}\n\n{shown}\n\nClaim: {_line(fact)}\n{asked} {ENDING}"


def _verdict(said: set[str], together: bool) -> Verdict:
    if "True" in said:
        return "disputed" if "False" in said and not together else "supported"
    return "contradicted" if "False" in said and not together else "unknown"


def _splitter(language: str) -> Callable[[str], list[str]]:
    try:
        import pysbd
    except ImportError as error:
        raise MissingExtra("align", "taking answers apart") from error
    try:
        segment = pysbd.Segmenter(language=language, clean=False).segment
    except ValueError as error:
        raise ConfigError("language", language, "a language that pysbd knows, such as en or de") from error
    return lambda text: [sentence.strip() for sentence in segment(text) if sentence.strip()]


def _line(text: str) -> str:
    return " ".join(text.split())
