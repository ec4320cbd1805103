"""FLAME's rows: what the base writes and what of it is kept, which answers make pairs, and what is left as it was."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from maypole.align.drawing import draw
from maypole.align.fact_based import DEMONSTRATIONS, ModelClassifier, classified
from maypole.align.fact_pairs import build_pairs
from maypole.align.judging import judged
from maypole.align.rlhf_workflow import IterativeDPO
from maypole.align.self_writing import Writing, build_sft, demonstrated, few_shot, nearest
from maypole.core.errors import ConfigError, JudgeError, UserError
from maypole.data import COMPLETION, PAIR, read
from maypole.engine import Engine, Output, Sampling, Usage
from maypole.evaluate.factuality import AtomicChecker, FactReward
from maypole.train.fit import fit
from maypole.train.supervised import Completions
from tests.align.flame_fixtures import TRUTH, WRITING, always, base, halves, instructions, never, score, some, who
from tests.align.online_fixtures import policy, training
from tests.train.train_fixtures import weights_of

FOUR = Sampling(n=4, max_tokens=5)
BRIEF = replace(WRITING, stop=tuple("abcdefghijklmnop"))
"""A random model's answers end somewhere."""


class Teller:
    """An engine that answers with what is told, sample by sample; the rest is a real one's."""

    def __init__(self, says: Sequence[tuple[str, str]]) -> None:
        self.engine, self.says, self.asked = Engine(base()), says, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[Any]) -> list[Output]:
        self.asked += [request.prompt for request in requests]
        return [
            Output(text, [], [], reason, Usage(0, 0), 0, request)  # type: ignore
            for request in requests
            for text, reason in self.says[: request.sampling.n]
        ]


def test_the_classifier_says_what_is_likelier_and_shows_both():
    lm = base(max_position_embeddings=4096)
    answers = ModelClassifier(Engine(lm))(["Who was Tom?", "Rhyme on moon", "Who was Tom?"])
    assert answers[0] == answers[2]
    assert {type(answer) for answer in answers} == {bool}
    assert {fact for _, fact in DEMONSTRATIONS} == {True, False}


@pytest.mark.parametrize(("answers", "says"), [([True], "2 instructions"), ([True, "no"], "'no'"), ([0, 1], "'0'")])
def test_an_answer_that_is_no_class_is_refused(answers: list, says: str):
    with pytest.raises(JudgeError, match=says):
        classified(lambda prompts: answers, ["Who?", "What?"])


def test_the_prompt_shows_exactly_k_of_the_nearest_others_the_nearest_last():
    likeness = np.array([0.1, 0.9, 0.5, 1.0, 0.7])
    assert nearest(likeness, np.array([True, True, True, False, True]), 3) == [2, 4, 1]
    with pytest.raises(UserError, match="1 other instructions are too few for 2 demonstrations"):
        nearest(likeness, np.array([False, True, False, False, False]), 2)


@pytest.mark.parametrize("k", [1, 3])
def test_an_instruction_is_never_its_own_demonstration(k: int):
    rows = instructions()
    known = [*zip(rows["prompt"], rows["completion"]), ("Who keeps the 1 bees?", "the same question, answered again")]
    asked = [prompt for prompt, _ in known]
    for prompt, text in zip(asked, demonstrated(Engine(base()), asked, known, Writing(demonstrations=k))):
        assert text.count("Instruction:") == k + 1
        assert text.count(prompt) == 1
        assert text.endswith(f"Instruction: {prompt}\nAnswer:")


def test_who_is_alike_may_be_said_by_another():
    known = [("red", "1"), ("green", "2"), ("blue", "3")]
    lengths = {"red": [1.0, 0.0], "green": [0.0, 1.0], "blue": [0.6, 0.8], "ruby": [1.0, 0.0]}
    (text,) = demonstrated(
        Engine(base()), ["ruby"], known, Writing(demonstrations=2), lambda texts: np.array([lengths[t] for t in texts])
    )
    assert text == few_shot("ruby", [("blue", "3"), ("red", "1")])


def test_answers_are_cut_at_the_next_instruction_by_the_engine_itself():
    assert WRITING.sampling(0).stop == ("\nInstruction:",)
    assert few_shot("a", [("b", "c")]).count(WRITING.stop[0]) == 1


def test_of_what_the_base_writes_the_empty_repeated_and_endless_is_dropped_and_counted():
    says = [(" one", "stop"), ("  \n", "stop"), ("one ", "stop"), (" on and on", "length"), (" two", "stop")]
    built = build_sft(Teller(says), instructions(4), who, Writing(demonstrations=1, samples=5))  # type: ignore
    assert built.rows["completion"] == [" answer 0", " one", " two", " answer 2", " one", " two"]
    assert built.rows["source"] == ["given", "self", "self"] * 2
    assert built.counts == {
        "instructions": 4, "fact_based": 2, "self_written": 4, "left_out": 0, "dropped, empty": 2,
        "dropped, repeated": 2, "dropped, too long": 2,
    }  # fmt: skip
    read(built.rows, COMPLETION)


def test_repetitions_may_be_kept_so_that_what_is_said_more_often_is_learnt_more_often():
    says = [(" one", "stop"), (" one", "stop")]
    built = build_sft(Teller(says), instructions(2), who, Writing(demonstrations=0, samples=2, distinct=False))  # type: ignore
    assert built.rows["completion"] == [" answer 0", " one", " one"]


def test_an_instruction_of_which_nothing_is_kept_is_left_out_and_never_gets_its_given_answer():
    built = build_sft(Teller([("", "stop")]), instructions(4), who, Writing(demonstrations=1, samples=1))  # type: ignore
    assert built.rows["completion"] == [" answer 0", " answer 2"]
    assert built.counts["left_out"] == 2
    with pytest.raises(UserError, match="no answer of the base model could be kept"):
        build_sft(Teller([("", "stop")]), instructions(4), always, Writing(demonstrations=1, samples=1))  # type: ignore


def test_a_prompt_that_leaves_no_room_is_left_out():
    built = build_sft(Engine(base(max_position_embeddings=128)), instructions(4), who, WRITING)
    assert built.counts["dropped, no room"] == 2
    assert built.rows["source"] == ["given", "given"]


def test_answers_have_the_form_of_those_that_were_given():
    chat = [[{"role": "user", "content": q}] for q in ("Who is Tom?", "Who is Mara?", "Ring")]
    given = [[{"role": "assistant", "content": a}] for a in ("A man.", "A baker.", "ding")]
    teller: Any = Teller([(" A bee\n", "stop")])
    writing = Writing(demonstrations=2, samples=1)
    built = build_sft(teller, Dataset.from_dict({"prompt": chat, "completion": given}), who, writing)
    assert list(built.rows["completion"]) == [[{"role": "assistant", "content": "A bee"}]] * 2 + [given[2]]
    assert "Instruction: Who is Mara?\nAnswer: A baker." in teller.asked[0]


def test_if_nothing_asks_for_facts_the_rows_are_those_of_plain_fine_tuning(tmp_path):
    rows = instructions()
    built = build_sft(Engine(base()), rows, never, WRITING).rows
    assert built.select_columns(["prompt", "completion"]).to_list() == rows.to_list()
    models = [base(), base()]
    for lm, learnt, name in zip(models, (rows, built), "ab"):
        fit(lm, read(learnt, COMPLETION), Completions(), training(max_steps=2, peft=None), out=tmp_path / name)
    first, second = map(weights_of, models)
    assert all((first[name] == second[name]).all() for name in first)


def test_answers_drawn_before_are_taken_from_where_they_were_kept(tmp_path):
    first = build_sft(Engine(base()), instructions(), who, BRIEF, seed=3, keep=tmp_path / "sft")
    silent: Any = Teller([])
    again = build_sft(silent, instructions(), who, BRIEF, seed=3, keep=tmp_path / "sft")
    assert again.rows.to_list() == first.rows.to_list()
    assert again.counts == first.counts
    assert silent.asked == []
    assert "self" in first.rows["source"]
    assert build_sft(Engine(base()), instructions(), who, BRIEF, seed=4).rows.to_list() != first.rows.to_list()


def pairs_of(classify: Any = who, facts: Any = TRUTH, judge: Any = score, **changes: Any) -> list[dict[str, Any]]:
    prompts = instructions().remove_columns(["completion"])
    return build_pairs(Engine(policy()), prompts, judge, facts, classify, FOUR, **changes).rows.to_list()  # type: ignore


def test_pairs_are_the_best_and_the_worst_by_brute_force():
    seen: dict[str, list[list[str]]] = {"if": [], "fact": []}

    def watched(kind: str, reward: Any) -> Any:
        def judge(prompts: list, completions: list, **columns: Any) -> Any:
            seen[kind] += [[p, c] for p, c in zip(prompts, completions)]
            return reward(prompts, completions)

        return judge

    made = pairs_of(judge=watched("if", score), facts=watched("fact", TRUTH))
    for kind, reward in (("if", score), ("fact", TRUTH)):
        expected = []
        for prompt in dict.fromkeys(p for p, _ in seen[kind]):
            said = [c for p, c in seen[kind] if p == prompt]
            scores: Any = reward([prompt] * len(said), said)
            if max(scores) > min(scores):
                expected.append((prompt, max(scores), min(scores)))
        mine = [row for row in made if row["kind"] == kind]
        assert [(row["prompt"], row["chosen_score"], row["rejected_score"]) for row in mine] == expected
    for row in made:
        PAIR.check(row)
        assert row["chosen"] != row["rejected"]


def test_only_prompts_that_ask_for_facts_make_pairs_of_truth_and_at_most_two_in_all():
    made = pairs_of()
    assert {row["kind"] for row in made} == {"if", "fact"}
    assert all(row["prompt"].startswith("Who") for row in made if row["kind"] == "fact")
    counts = [[row["kind"] for row in made if row["row"] == i] for i in range(8)]
    assert all(len(kinds) == len(set(kinds)) for kinds in counts)
    assert [row["row"] for row in made] == sorted(row["row"] for row in made)


def test_if_nothing_asks_for_facts_the_pairs_are_those_of_plain_preferences():
    plain = IterativeDPO(sampling=FOUR)
    prompts = instructions().remove_columns(["completion"])
    drawn = list(draw(Engine(policy()), list(prompts), list(range(8)), plain, seed=0, round=0, first=0))  # type: ignore
    expected = plain.rows(Dataset.from_list(judged(drawn, score, "reward", []))).to_list()  # type: ignore
    made = pairs_of(never)
    assert [{k: v for k, v in row.items() if k not in ("row", "kind")} for row in made] == expected
    assert {row["kind"] for row in made} == {"if"}


def test_replacing_leaves_no_other_pairs_where_everything_asks_for_facts():
    assert {row["kind"] for row in pairs_of(always, fact_pairs="replace")} == {"fact"}
    made = pairs_of(who, fact_pairs="replace")
    assert {(row["kind"], row["prompt"].startswith("Who")) for row in made} == {("fact", True), ("if", False)}


def test_pairs_whose_answers_are_about_as_true_are_left_out():
    gaps = [r["chosen_score"] - r["rejected_score"] for r in pairs_of() if r["kind"] == "fact"]
    assert set(gaps) == {0.5, 1.0}
    wide = [row for row in pairs_of(min_gap=0.75) if row["kind"] == "fact"]
    assert len(wide) == gaps.count(1.0)


def test_a_checker_that_always_says_the_same_makes_no_pairs():
    checker = AtomicChecker(halves, lambda facts, evidence: [True] * len(facts), some, abstains=lambda text: False)
    same = FactReward(checker)
    assert all(row["kind"] == "if" for row in pairs_of(always, facts=same))
    with pytest.raises(JudgeError, match="no two answers to any of 8 prompts differ"):
        pairs_of(always, facts=same, fact_pairs="replace")


def test_one_answer_has_nothing_to_be_compared_with():
    prompts = instructions().remove_columns(["completion"])
    with pytest.raises(ConfigError, match="--n"):
        build_pairs(Engine(policy()), prompts, score, TRUTH, who, Sampling(n=1))  # type: ignore
    with pytest.raises(ConfigError, match="--fact-pairs"):
        pairs_of(fact_pairs="both")


def test_a_judge_that_fails_stops_with_its_row_or_costs_its_prompt():
    def fails(prompts: list, completions: list, **columns: Any) -> list[float]:
        if any("3" in prompt for prompt in prompts):
            raise RuntimeError("no")
        return [float(len(c)) for c in completions]

    with pytest.raises(JudgeError, match="row 4"):
        pairs_of(judge=fails)
    made = pairs_of(judge=fails, on_judge_error="skip-row")
    assert not [row for row in made if row["row"] == 3 and row["kind"] == "if"]
    assert [row for row in made if row["row"] == 3 and row["kind"] == "fact"]


def test_pairs_drawn_before_are_taken_from_where_they_were_kept(tmp_path):
    first = pairs_of(keep=tmp_path / "pairs")
    assert pairs_of(keep=tmp_path / "pairs", judge=None, facts=None) == first
