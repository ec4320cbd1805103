"""By what, and against which evidence, facts are checked. Loads torch only when a checker is opened."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maypole.core.config import ModelOptions, pass_on, setting
from maypole.core.errors import ConfigError, UserError

if TYPE_CHECKING:
    from maypole.engine import Engine
    from maypole.evaluate.factuality import AtomicChecker, Retrieve


@dataclass(frozen=True, kw_only=True)
class FactOptions:
    """A checker of the user's, or a model that reads evidence."""

    evidence: tuple[str, ...] = setting(
        (), input=True, help="files with title and text, searched by BM25; or file.py:function, (query, k) -> passages"
    )
    checker: str | None = setting(
        None, input=True, help="model that takes answers apart and reads evidence; or file.py:NAME of an AtomicChecker"
    )
    k: int = setting(5, help="passages read for each fact")
    passage_words: int = setting(180, help="longest passage that a document is cut into")
    by_title: bool = setting(False, help="search only the document whose title is the topic, as FActScore")
    together: bool = setting(False, help="read all passages at once, as FActScore; else each apart")
    language: str = setting("en", help="of the answers, to tell their sentences apart")

    def __post_init__(self) -> None:
        for field in ("k", "passage_words"):
            if getattr(self, field) < 1:
                raise ConfigError(field, getattr(self, field), "1 or more")
        if self.own_checker and self.evidence:
            raise ConfigError("evidence", self.evidence, "none beside a checker of your own, which has its own")
        if not self.own_checker and not self.evidence:
            raise ConfigError("evidence", self.evidence, "documents or a retriever, or --checker file.py:NAME")
        if self.by_title and (self.own_checker or self.function):
            raise ConfigError("by_title", True, "--evidence files, whose titles are known")
        pass_on(FactOptions, self)

    @property
    def own_checker(self) -> bool:
        return self.checker is not None and _is_function(self.checker)

    @property
    def function(self) -> bool:
        """Whether the evidence is a function."""
        return len(self.evidence) == 1 and _is_function(self.evidence[0])


def open_reader(options: FactOptions, model: ModelOptions) -> "Engine":
    """The model that checks: the one that ``--checker`` names, else `model`, which says how either is held."""
    from maypole.engine.opening import open_engine

    if options.checker is None:
        return open_engine(model)
    return open_engine(model, model=options.checker, adapter=None, revision=None)


def open_checker(options: FactOptions, engine: "Engine | None") -> "AtomicChecker":
    """The checker that `options` name; `engine` reads, where it is none of the user's own.

    UserError where a file holds no checker.
    """
    from maypole.evaluate.factuality import AtomicChecker

    if options.own_checker:
        from maypole.evaluate.judges import function_of

        found = function_of(str(options.checker))
        if not isinstance(found, AtomicChecker):
            raise UserError(f"a {type(found).__name__} is no checker", str(options.checker), "an AtomicChecker")
        return found
    from maypole.evaluate.fact_cache import FactCache
    from maypole.evaluate.fact_models import ModelDecomposer, ModelVerifier

    assert engine is not None
    retrieve, cache = open_evidence(options), FactCache()
    decompose = ModelDecomposer(engine, cache, options.language)
    return AtomicChecker(decompose, ModelVerifier(engine, cache, options.together), retrieve, options.k)


def open_evidence(options: FactOptions) -> "Retrieve | dict[str, Any]":
    """The retriever that ``--evidence`` names, or one for each title."""
    if options.function:
        from maypole.evaluate.judges import function_of

        found: Callable = function_of(options.evidence[0])
        return found
    from maypole.data import stream
    from maypole.evaluate.fact_sources import Documents, pages

    rows = (row for batch in stream(options.evidence) for row in batch.to_pylist())
    return (pages if options.by_title else Documents)(rows, options.passage_words)


def _is_function(spec: str) -> bool:
    file, colon, _ = spec.rpartition(":")
    return bool(colon) and file.endswith(".py")
