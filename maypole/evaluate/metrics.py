"""How close a text is to its reference answers: exact match, F1 over words, ROUGE-L. Knows no model."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[a-z0-9]+")


def normalize(text: str) -> str:
    """Lower case without punctuation, articles and extra spaces (SQuAD, arXiv 1606.05250)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction is one of the normalised answers."""
    return float(normalize(prediction) in {normalize(a) for a in answers})


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, counted with multiplicity; the best over the answers."""

    def one(answer: str) -> float:
        said, wanted = normalize(prediction).split(), normalize(answer).split()
        common = sum((Counter(said) & Counter(wanted)).values())
        return _harmonic(common, len(said), len(wanted)) if said and wanted else float(said == wanted)

    return max((one(a) for a in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), without stemming; the best over the answers."""
    said = _WORD.findall(prediction.lower())

    def one(answer: str) -> float:
        wanted = _WORD.findall(answer.lower())
        return _harmonic(_common_subsequence(said, wanted), len(said), len(wanted)) if said and wanted else 0.0

    return max((one(a) for a in answers), default=0.0)


Compare = Callable[[str, Sequence[str]], float]

METRICS: dict[str, Compare] = {"exact_match": exact_match, "f1": f1, "rouge_l": rouge_l}


def _harmonic(common: int, said: int, wanted: int) -> float:
    return 2 * common / (said + wanted) if common else 0.0


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b):
            diagonal, row[j + 1] = row[j + 1], diagonal + 1 if x == y else max(row[j], row[j + 1])
    return row[-1]
