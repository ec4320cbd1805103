"""How FLAME goes, by itself and as a command. Knows nothing about torch: command lines import it."""

from dataclasses import dataclass
from typing import Literal

from maypole.core.config import check, pass_on, setting
from maypole.core.errors import ConfigError
from maypole.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class FlameConfig:
    """Both steps: answers that the base writes itself and training on them, pairs by two rewards and training on those.

    The same adapter, if ``sft.peft`` makes one, learns in both.
    """

    demonstrations: int = setting(5, help="instructions with answers that the base model is shown before it writes")
    samples: int = setting(10, help="answers that it writes to an instruction that asks for facts")
    writing_temperature: float = setting(0.7, help="of the answers that it writes")
    n: int = setting(4, help="answers of the fine-tuned model to a prompt, to make pairs of")
    temperature: float = setting(1.0, help="of those")
    max_tokens: int = setting(256, help="longest answer")
    fact_pairs: Literal["add", "replace"] = setting(
        "add", help="add: prompts that ask for facts make pairs by both rewards; replace: by truth alone"
    )
    min_gap: float = setting(0.0, help="how much truer the chosen answer of a pair must be, from 0 to 1")
    beta: float = setting(0.1, help="how strongly DPO holds to the fine-tuned model")
    gamma: float = setting(10.0, help="facts from which the score of an answer is no longer lowered; of reports only")
    on_judge_error: Literal["stop", "skip-row"] = setting("stop", help="a judge that fails: stop, or leave out the row")
    sft: TrainConfig = setting(factory=TrainConfig)
    dpo: TrainConfig = setting(factory=TrainConfig)

    def __post_init__(self) -> None:
        check("fact_pairs", self.fact_pairs, ("add", "replace"))
        check("on_judge_error", self.on_judge_error, ("stop", "skip-row"))
        for field, least in (("demonstrations", 0), ("samples", 1), ("n", 2), ("max_tokens", 1)):
            if getattr(self, field) < least:
                raise ConfigError(field, getattr(self, field), f"{least} or more")
        if not 0 <= self.min_gap <= 1:
            raise ConfigError("min_gap", self.min_gap, "0 to 1")
        for field in ("beta", "gamma"):
            if getattr(self, field) <= 0:
                raise ConfigError(field, getattr(self, field), "above 0")
        if self.dpo.peft is not None:
            raise ConfigError("dpo.peft", self.dpo.peft.type, "none: the adapter of --sft.peft.type goes on learning")
        for stage in ("sft", "dpo"):
            if getattr(self, stage).eval_steps:
                raise ConfigError(f"{stage}.eval_steps", getattr(self, stage).eval_steps, "0: --eval-data is checked")
        pass_on(FlameConfig, self)
