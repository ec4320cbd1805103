"""What the report says of stage 3: how often the model beats itself as it was before the rounds, and what changed in
its answers.

Reads the stage's artifact; measures nothing.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maypole.core.artifact import Artifact
from maypole.core.seeds import derive
from maypole.core.statistics import Interval
from maypole.tour import judges
from maypole.tour.align import DRAWN, FORM, JUDGES, MEASURED, ROUNDS, Found, Policy
from maypole.tour.evaluate import choose
from maypole.tour.preferences import BETA, CONTINUATION, SHOWN
from maypole.tour.report import Example, Stage, Table, won_by_round, won_for_distance
from maypole.tour.report.words import bounds, counted, number, percent
from maypole.tour.stages import BY_NAME, StageInfo
from maypole.tour.telling import Facts, Progress, common

LEFT_OUT = "Left out: this model answers too slowly here for rounds within the minutes; a larger --minutes has them."


def page(facts: Facts, info: StageInfo, stage: Progress) -> Stage:
    """The stage's part of the report."""
    if not facts.plan.align.rounds:
        return Stage(name=info.name, number=info.number, state="empty", finding=LEFT_OUT)
    if stage.artifact is None:
        return Stage(name=info.name, number=info.number, finding=stage.finding, **common(stage))
    found = Found.of(stage.artifact.path)
    won, moved = ([getattr(policy, name) for policy in found.policies] for name in ("win_rate", "moved"))
    return Stage(
        name=info.name, number=info.number, plots=[won_by_round(won), won_for_distance(won, moved)],
        finding=_finding(facts, found), table=_table(found), examples=_examples(found, facts.options.seed),
        repeat_command=_command(facts, stage.artifact.path), repeat_python=_python(facts, stage.artifact.path),
        **common(stage),
    )  # fmt: skip


def _finding(facts: Facts, found: Found) -> str:
    plan, before, after = facts.plan.align, found.policies[0], found.policies[-1]
    won = after.win_rate
    changes = [f"{name} {told} to {now}" for name, told, now in zip(_names(found), _worth(before), _worth(after))]
    what, judge = (
        ("descriptions of people in maypole's own village, whose facts the judge knows", "no round drew")
        if plan.form_rows
        else ("continuations of your texts, judged by how much they are like the real ones (ROUGE-L)", "are held out")
    )
    measured = "people" if plan.form_rows else "texts"
    return (
        f"In {counted(plan.rounds, 'round')} the model learnt from {plan.samples} judged answers of its own to each of "
        f"{plan.prompts} prompts: {what}. On {len(after.won)} {measured} that {judge} it "
        f"{_verdict(won)} itself before the rounds: win rate {number(won.mean, 2)} {bounds(won, 2).replace('+', '')}; "
        f"{', '.join(changes)}.{_caveat(facts)}"
    )


def _verdict(won: Interval) -> str:
    if won.low > 0.5:
        return "beats"
    return "loses to" if won.high < 0.5 else "does not clearly beat"


def _caveat(facts: Facts) -> str:
    """What the number does not say."""
    if not facts.plan.align.form_rows:
        return ""
    if facts.own:
        return " The form was shown first, with two clauses of five wrong; the base knows these people's facts."
    return (
        " The form was shown first, with two clauses of five wrong. Your model has never read of these people, so one "
        "such description stood beside its own answers: what it can learn here is the form, and to say little where it "
        "does not know."
    )


def _names(found: Found) -> list[str]:
    return ["mean reward", *(["right clauses"] if found.policies[0].counts else []), "tokens an answer"]


def _worth(policy: Policy) -> list[str]:
    counts = policy.counts
    right = [percent(sum(counts["right clauses"]) / max(sum(counts["clauses"]), 1))] if counts else []
    return [number(_mean(policy.rewards), 2), *right, number(_mean(policy.tokens), 1)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _table(found: Found) -> Table:
    before, after = found.policies[0], found.policies[-1]
    sides = (before, after)
    rows = [("mean reward", *(round(_mean(side.rewards), 3) for side in sides))]
    if before.counts:
        shares = (sum(s.counts["right clauses"]) / max(sum(s.counts["clauses"]), 1) for s in sides)
        rows.append(("right clauses (share)", *(round(share, 3) for share in shares)))
        rows.append(("clauses an answer", *(round(_mean(s.counts["clauses"]), 2) for s in sides)))
    rows.append(("tokens an answer", *(round(_mean(side.tokens), 2) for side in sides)))
    won = np.array(after.won)
    counts = {"won": won > 0.5, "tied": won == 0.5, "lost": won < 0.5}
    more: list[Any] = [(f"prompts {name}", None, int(which.sum())) for name, which in counts.items()]
    more.append(("KL from before (nats/answer)", None, round(after.moved.mean, 3)))
    caption = f"Before and after the rounds, {counted(after.samples, 'answer')} to each of {len(won)} prompts"
    return Table(columns=("", "before", "after"), rows=[*rows, *more], caption=caption)


def _examples(found: Found, seed: int) -> list[Example]:
    """Of the prompts that are shown the first answer on either side."""
    before, after = found.policies[0], found.policies[-1]
    gains = [after.rewards[i] - before.rewards[i] for i in range(0, len(after.rewards), after.samples)]
    made: list[Example] = []
    for shown in choose(gains, seed):
        prompt, first = found.columns["prompt"][shown.item], shown.item * after.samples
        really = found.columns[CONTINUATION][shown.item] if CONTINUATION in found.columns else judges.truth(prompt)
        rewards = f"reward {number(before.rewards[first], 2)} to {number(after.rewards[first], 2)}"
        made.append(
            Example(
                label=f"{shown.label}: {rewards}", prompt=f"{prompt.strip()}\n(right: {really.strip()})",
                before=before.answers[first].strip(), after=after.answers[first].strip(),
            )
        )  # fmt: skip
    return made


def _command(facts: Facts, stage: Path) -> str:
    """Such rounds as one would type them; those of the tour to the last setting are the Python form. Answers of the
    data among the policy's have no command of their own."""
    plan, out = facts.plan.align, facts.options.out
    if not (plan.form_rows and facts.own):
        return facts.options.command
    here = out / BY_NAME["align"].directory
    config = Artifact.load(stage / ROUNDS).manifest["config"]
    longest = config["online"]["eval_max_tokens"]
    return shlex.join(
        ["maypole", "align", "online", "--model", str(here / FORM), "--data", str(here / DRAWN),
         "--judge", f"{here / JUDGES}:{judges.describes_better.__name__}", "--eval-data", str(here / MEASURED),
         "--rounds", str(plan.rounds), "--prompts-per-round", str(plan.prompts), "--n", str(plan.samples),
         "--max-tokens", str(longest), "--eval-max-tokens", str(longest),
         "--train.learning-rate", f"{config['train']['learning_rate']:.3g}",
         "--train.examples-per-step", str(plan.examples_per_step), "--out", str(out / "rounds")]
    )  # fmt: skip


def _python(facts: Facts, stage: Path) -> str:
    """The rounds again, from the prompts and judges that lie beside their result."""
    plan, out = facts.plan.align, facts.options.out
    here = out / BY_NAME["align"].directory
    made = Artifact.load(stage / ROUNDS).manifest
    config, seed = made["config"], derive(made["seed"], ROUNDS)
    names = ("learning_rate", "max_steps", "examples_per_step", "max_length", "lr_scheduler_type", "warmup_ratio",
             "lr_scheduler_kwargs")  # fmt: skip
    train = ", ".join(f"{name}={config['train'][name]!r}" for name in names)
    iterative = plan.form_rows and facts.own
    method, module = ("IterativeDPO", "align.rlhf_workflow") if iterative else ("BesideGiven", "tour.preferences")
    given = "" if iterative else f", ({(SHOWN if plan.form_rows else CONTINUATION)!r},)"
    judge = judges.describes_better if plan.form_rows else judges.goes_on_like
    sampling = f"n={plan.samples}, max_tokens={config['online']['eval_max_tokens']}"
    model = here / FORM if plan.form_rows else out / BY_NAME["adapt"].directory
    return "\n".join(
        [
            "from maypole.align.config import OnlineConfig",
            "from maypole.align.online import online",
            "from maypole.align.preference_options import PreferenceOptions",
            f"from maypole.{module} import {method}",
            "from maypole.data import PROMPT, read",
            "from maypole.engine import Sampling",
            "from maypole.evaluate import judges",
            "from maypole.models import load",
            "from maypole.train import TrainConfig",
            "",
            f"lm, prompts = load({str(model)!r}), read({str(here / DRAWN)!r}, PROMPT)",
            f"judge = judges.load({f'{here / JUDGES}:{judge.__name__}'!r})",
            f"method = {method}(PreferenceOptions(beta={BETA}), Sampling({sampling}){given})",
            f"rounds = OnlineConfig(rounds={plan.rounds}, prompts_per_round=len(prompts))",
            f"train = TrainConfig({train})",
            f"online(lm, prompts, judge, method, rounds, train, out={str(out / 'rounds')!r}, seed={seed})",
        ]
    )
