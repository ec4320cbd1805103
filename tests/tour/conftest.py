"""Small corpora, tiny models and fixed rates: a tour in seconds, the same one every time."""

import random
from pathlib import Path

import pytest

from maypole.models import save
from maypole.tour import TourOptions, base, plan, run, run_tour
from maypole.tour.plan import Rates
from tests.engine.engine_fixtures import lm_of

WORDS = [f"{a}{b}" for a in ("ta", "ri", "mo", "ke", "su", "lo") for b in ("n", "rel", "si", "dom", "pa", "v")]
RATES = Rates(
    train_tokens_per_second=16_000, score_tokens_per_second=2_000, reference_tokens_per_second=2_000,
    answers_per_second=100, tokens_a_document=150, rows_a_document=2.0, tokens_a_row=100, tokens_an_instruction_row=60,
)  # fmt: skip
MINUTES = 0.05


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.getbasetemp() / "tour-cache"))


@pytest.fixture
def _fixed_rates(monkeypatch):
    """The probe finds the same on every machine, the base that ships is the small one, and none of the minutes is
    spared for preferences."""
    monkeypatch.setattr(plan, "SPARED", 0.0)
    monkeypatch.setattr(run, "probe", lambda *args, **kwargs: RATES)
    monkeypatch.setattr(base, "SHIPPED_BASE", "village-1M")


def sentences(count: int, seed: int = 0) -> str:
    """Text with something to learn: a word is often followed by the one after it in the list."""
    draws = random.Random(seed)
    words, at = [], 0
    for _ in range(count):
        at = (at + 1) % len(WORDS) if draws.random() < 0.8 else draws.randrange(len(WORDS))
        words.append(WORDS[at] + ("." if draws.random() < 0.1 else ""))
    return " ".join(words)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder of thirty short texts, some of them Markdown."""
    folder = tmp_path_factory.mktemp("texts") / "notes"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.{'md' if i % 3 else 'txt'}").write_text(sentences(80, seed=i))
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A tiny model with a chat template."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    save(lm_of("llama"), path)
    return path


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory) -> Path:
    """A tiny model of another family, without a chat template."""
    path = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    lm = lm_of("gpt2")
    lm.tokenizer.chat_template = None
    save(lm, path)
    return path


def options(out: Path, corpus: Path | None, model: Path | None = None, **changes) -> TourOptions:
    fields = {"out": out, "corpus": corpus, "model": str(model) if model else None, "minutes": MINUTES, **changes}
    return TourOptions(**fields)


@pytest.fixture(scope="session")
def own(tmp_path_factory, corpus):
    """A finished tour of the base that ships."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maypole.tour.run.probe", lambda *args, **kwargs: RATES)
        patch.setattr("maypole.tour.base.SHIPPED_BASE", "village-1M")
        patch.setenv("MAYPOLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        asked = options(tmp_path_factory.mktemp("own") / "run", corpus)
        return asked, run_tour(asked)
