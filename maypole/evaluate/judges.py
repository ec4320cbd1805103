"""The one reader of judge specs: a text that names who judges becomes a Reward or a Preference.

Knows nothing about what is judged.
"""

import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maypole.core.errors import ConfigError, JudgeError, UnsupportedCapability, UserError
from maypole.core.identity import digest, identity
from maypole.core.judge import Preference, Reward, call_reward
from maypole.data.pair_question import FILE as PAIR_QUESTION
from maypole.data.pair_question import PairQuestion
from maypole.engine import Engine
from maypole.evaluate.pair_model import PairModel
from maypole.evaluate.reward_model import RewardModel
from maypole.models.hub import local
from maypole.models.language_model import LanguageModel
from maypole.models.score_head import has_score_head

_CONFIGS = ("adapter_config.json", "config.json")
_SCORING = ("ForSequenceClassification", "SEQ_CLS")

_EXPECTED = "file.py:function, or the directory or hub id of a reward or pair model"


def load(spec: str, *, engine: Engine | None = None) -> Reward | Preference:
    """The judge that `spec` names.

    ``file.py:function`` is a Preference if it has parameters `a` and `b`, else a Reward. The directory or hub id of a
    model that `align reward` trained, or of any other with a head of one score, is what its files say: a pair model is
    a Preference, a score head a Reward. A URL, a rubric asked of a model there, is UnsupportedCapability for now.
    """
    if spec.startswith(("http://", "https://")):
        raise UnsupportedCapability("a model behind a URL cannot judge", spec, _EXPECTED)
    if spec.rpartition(":")[0].endswith(".py"):
        return _called(function_of(spec), spec)
    if not Path(spec).is_dir() and (spec.count("/") != 1 or spec.startswith(("/", ".", "~"))):
        raise UserError("not a judge", spec, _EXPECTED)
    return _model(local(spec), spec)


def _model(directory: Path, spec: str) -> Reward | Preference:
    """What the files of a model's directory make of it."""
    if (directory / PAIR_QUESTION).is_file():
        return PairModel(Engine.load(spec), PairQuestion.read(directory))
    if not scores_texts(directory, spec):
        what = f"a model that neither scores texts nor compares them ({', '.join(_kinds(directory, spec))})"
        raise UserError(what, spec, "one that `align reward` trained")
    engine = Engine.load(spec, task="score")
    check_one_score(engine.lm, spec)
    return RewardModel(engine)


def scores_texts(directory: Path, spec: str) -> bool:
    """Whether the files of a model's or adapter's directory say that it scores texts; `spec` is who asked for it."""
    return any(kind.endswith(_SCORING) for kind in _kinds(directory, spec))


def check_one_score(lm: LanguageModel, spec: str) -> None:
    """UserError where a model that scores texts has not one score for each."""
    labels = lm.transformer.config.num_labels
    if labels != 1 or not has_score_head(lm.model):
        family = lm.transformer.config.model_type
        raise UserError(f"the head of this {family} model has {labels} scores", spec, "a decoder with a head of one")


def _kinds(directory: Path, spec: str) -> list[str]:
    config = next((directory / name for name in _CONFIGS if (directory / name).is_file()), None)
    if config is None:
        raise UserError("holds no model", spec, _EXPECTED)
    try:
        fields = json.loads(config.read_text())
        return [str(kind) for kind in (*(fields.get("architectures") or ()), fields.get("task_type")) if kind]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{config.name} cannot be read", spec, "valid JSON; copy it again") from error


def load_all(
    specs: Sequence[str], weights: Sequence[float] | None = None, *, engine: Engine | None = None
) -> Reward | Preference:
    """One judge from several specs: the weighted sum of rewards; a preference stands alone."""
    judges = [load(spec, engine=engine) for spec in specs]
    if not judges:
        raise UserError("no judge named", "--judge", _EXPECTED)
    if weights is not None and len(weights) != len(judges):
        raise ConfigError("judge_weights", tuple(weights), f"one per judge, here {len(judges)}")
    if len(judges) == 1 and weights is None:
        return judges[0]
    if any(is_preference(judge) for judge in judges):
        raise UserError("preferences cannot be added up", "--judge", "one preference alone, or rewards only")
    rewards: Any = judges
    return combined(rewards, weights or [1.0] * len(judges))


def combined(rewards: Sequence[Reward], weights: Sequence[float]) -> Reward:
    """The weighted sum of those rewards that have an opinion on a row, None where none has."""

    def weighted(prompts: list, completions: list, **columns: list) -> list[float | None]:
        answers = [call_reward(reward, prompts, completions, columns).scores for reward in rewards]
        totals: list[float | None] = []
        for row in zip(*answers, strict=True):
            heard = [w * s for w, s in zip(weights, row, strict=True) if s is not None]
            totals.append(sum(heard) if heard else None)
        return totals

    parts = [identity(reward) for reward in rewards]
    known = [part for part in parts if part is not None]
    if len(known) == len(parts):
        setattr(weighted, "fingerprint", digest("judges", *known, *map(str, weights)))  # noqa: B010
    return weighted


def is_preference(judge: Reward | Preference) -> bool:
    """Whether a judge compares two answers: its parameters are `a` and `b`."""
    try:
        parameters: Mapping[str, Any] = inspect.signature(judge).parameters
    except (TypeError, ValueError) as error:
        raise JudgeError("the judge's parameters cannot be read", expected="a function") from error
    return "a" in parameters and "b" in parameters


def _called(judge: Any, spec: str) -> Any:
    if not callable(judge):
        raise UserError(f"a {type(judge).__name__} cannot judge", spec, "a function, or what can be called as one")
    return judge


def function_of(spec: str) -> Any:
    """What ``file.py:function`` names: a function, or any object of that name in the file."""
    place, _, name = spec.rpartition(":")
    file = Path(place)
    if not file.is_file():
        raise UserError("no such file", str(file), "file.py:function")
    module_name = f"maypole_judge_{digest(str(file.resolve()))}"
    found = importlib.util.spec_from_file_location(module_name, file)
    if found is None or found.loader is None:
        raise UserError("not a Python file", str(file), _EXPECTED)
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise JudgeError(f"the file raised {type(error).__name__}: {error}", str(file)) from error
    function = getattr(module, name, None)
    if function is None:
        known = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        raise UserError(f"no function {name!r}", spec, f"functions there: {', '.join(known) or 'none'}")
    return function
