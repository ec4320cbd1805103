import re

import numpy as np
import pytest

from maypole.core import theme
from maypole.core.statistics import Interval
from maypole.tour.report import (
    Changes,
    accuracy_by_skill,
    change_per_measure,
    documents_by_surprise,
    held_out_loss,
    program_picture,
    scatter,
    seconds_each_way,
    token_share,
    won_by_round,
    won_for_distance,
)
from maypole.tour.report.figure import label, names_within, thinned

LOSSES = {"a": Interval(-4.9, -3.9, -4.4), "b": Interval(-1, 1, 0)}
CHANGES = [
    Changes(measure="perplexity", better="lower", digits=1, changes=LOSSES),
    Changes(measure="accuracy", unit="share", better="higher", changes={"a": Interval(0.01, 0.05, 0.03)}),
]
EDGES, BINS = [i / 10 for i in range(61)], [i % 7 for i in range(60)]


def program(parts: int):
    """Parts at once, then the whole."""
    times = {"submitted": 0.0, "ready": 0.0, "placed": 0.1, "first_token": 0.2, "ended": 0.4}
    used = {"prompt": 100, "reused": 64, "said": 9}
    nodes = [
        {"id": f"t{i}", "function": "told", "column": 0, "tokens": used, "seconds": times} for i in range(parts)
    ] + [{"id": "all", "function": "summed_up", "column": 1, "tokens": used, "seconds": {**times, "ended": None}}]
    edges = [{"name": "sentence", "from": f"t{i}", "to": ["all"]} for i in range(parts)]
    return {"nodes": nodes, "edges": [*edges, {"name": "summary", "from": "all", "to": []}]}


def points(n: int):
    rng = np.random.default_rng(0)
    return {"a": (rng.normal(size=n), rng.normal(size=n))}


@pytest.mark.parametrize(
    "make",
    [
        lambda: held_out_loss(list(range(5_000)), list(np.linspace(3, 2, 5_000)), 3.1),
        lambda: accuracy_by_skill([f"skill {i}" for i in range(60)], [0.5] * 60, {"a": [0.6] * 60, "b": [0.4] * 60}),
        lambda: change_per_measure(CHANGES * 8),
        lambda: documents_by_surprise(EDGES, {f"domain {i}": (BINS, BINS) for i in range(50)}, (3.0, 5.0)),
        lambda: token_share({f"domain {i}": i + 1 for i in range(50)}, {"domain 3": 7}),
        lambda: program_picture(program(40)),
        lambda: seconds_each_way([0.5, 0.4], [0.7, 0.9]),
        lambda: won_by_round([Interval(0.4, 0.6, 0.5)] * 30),
        lambda: won_for_distance([Interval(0.4, 0.6, 0.5)] * 30, [Interval(i, i + 1, i + 0.5) for i in range(30)]),
        lambda: scatter("t", "f", points(600), x="x", y="y"),
        lambda: scatter("t", "f", points(20_000), x="x", y="y"),
    ],
)
def test_every_plot_is_small_themable_and_byte_equal(make):
    plot, again = make(), make()
    svg = theme.themable(plot.svg, "s1p1")
    assert svg == theme.themable(again.svg, "s1p1")
    assert len(svg.encode()) < 60_000
    assert not re.search(r'(fill|stroke)="#', svg)
    assert "style=" not in svg


def test_more_than_six_hundred_marks_are_one_png_layer():
    assert theme.themable(scatter("t", "f", points(601), x="x", y="y").svg, "p").count("<image") == 1
    assert "<image" not in scatter("t", "f", points(600), x="x", y="y").svg


def test_loss_names_where_it_fell_and_keeps_base_in_its_table():
    plot = held_out_loss([0, 1_000, 2_000], [3.1, 2.5, 2.6], 3.12)
    assert plot.finding == (
        "Held-out loss fell from 3.120 (base) to 2.600 nats per token after 2,000 training tokens."
        " The lowest was 2.500 at 1,000 tokens."
    )
    assert plot.table.rows[:2] == [("base", 3.12), (0, 3.1)]
    with pytest.raises(ValueError, match="2 token counts and 1 losses"):
        held_out_loss([1, 2], [1.0], 3.0)


def test_accuracy_names_the_largest_gain_and_loss():
    plot = accuracy_by_skill(["x", "y", "z"], [0.5, 0.5, 0.5], {"adapted": [0.7, 0.5, 0.4]})
    assert plot.finding == (
        "Accuracy rose in 1 of 3 skills and fell in 1, most gained in x (+0.20), most lost in z (−0.10)."
    )
    assert plot.table.rows[2] == ("z", 0.5, 0.4)
    with pytest.raises(ValueError, match="2 accuracies of a for 1 skills"):
        accuracy_by_skill(["x"], [0.5], {"a": [0.1, 0.2]})


def test_changes_are_counted_per_model_and_tabled_with_verdicts():
    plot = change_per_measure(CHANGES)
    assert plot.finding == (
        "a: of 2 measures 2 better, 0 no clear change, 0 worse. b: of 1 measures 0 better, 1 no clear change, 0 worse."
    )
    assert plot.table.rows[0] == ("perplexity", "", "a", "−4.4", "[−4.9, −3.9]", "better")


def test_an_unbounded_interval_is_drawn_as_a_point():
    one = Changes(measure="m", better="higher", changes={"a": Interval(-np.inf, np.inf, 1.0)})
    plot = change_per_measure([one])
    assert plot.table.rows[0][3:] == ("+1.00", "", "no clear change")


def test_names_with_markup_controls_or_length_become_labels():
    svg = accuracy_by_skill(["<b>$x^2$\x00", "y" * 50], [0.1, 0.2], {"a": [0.1, 0.3]}).svg
    assert "&lt;b&gt;$x^2$⟨U+0000⟩" in svg
    assert "y" * 23 + "…" in svg
    assert label("a\nb") == "a b"
    assert names_within(["z" * 30, "z" * 40]) == ["z" * 23 + "… (1)", "z" * 23 + "… (2)"]


def test_thinning_keeps_both_ends():
    kept = thinned(1_000)
    assert (len(kept), kept[0], kept[-1]) == (120, 0, 999)
    assert thinned(3) == [0, 1, 2]


def test_documents_by_surprise_says_what_is_kept_of_each_domain():
    domains = {"wiki": ([0, 8, 2], [0, 8, 1]), "noise": ([0, 0, 10], [0, 0, 1])}
    plot = documents_by_surprise([1.0, 2.0, 3.0, 4.0], domains, (2.0, 3.25))
    assert plot.finding == "Kept is what lies between 2.00 and 3.25 nats per token: 90 % of wiki and 10 % of noise."
    assert plot.table.rows == [("wiki", 2.0, 3.0, 8, 8), ("wiki", 3.0, 4.0, 2, 1), ("noise", 3.0, 4.0, 10, 1)]


def test_beyond_four_domains_the_smaller_ones_are_one():
    domains = {name: ([4], [1]) for name in "abcdef"}
    plot = documents_by_surprise([1.0, 2.0], domains, (1.0, 2.0))
    assert [row[0] for row in plot.table.rows] == ["a", "b", "c", "other"]
    assert plot.table.rows[-1] == ("other", 1.0, 2.0, 12, 3)


def test_token_share_is_of_all_and_of_what_is_kept():
    plot = token_share({"wiki": 50, "noise": 50}, {"wiki": 90, "noise": 10})
    assert plot.finding == "Of the tokens: wiki 50 % to 90 % and noise 50 % to 10 %."
    assert plot.table.rows == [("wiki", 0.5, 0.9), ("noise", 0.5, 0.1)]


def test_a_program_is_drawn_with_what_was_reused_and_many_alike_as_one():
    plot = program_picture(program(40))
    assert plot.finding.startswith("41 calls, 40 of which start at once; of the 4,100 tokens")
    assert "29 more" in plot.svg
    assert plot.svg.count("reused 64 of 100") == 12
    assert len(plot.table.rows) == 41
    assert plot.table.rows[0] == ("told", 1, 100, 64, 9, 0.1, 0.3)
    assert plot.table.rows[-1][-1] is None


def test_rounds_are_told_by_how_often_they_win_and_how_far_they_moved():
    won, moved = [Interval(0.5, 0.5, 0.5), Interval(0.61, 0.79, 0.7)], [Interval(0, 0, 0), Interval(1.2, 1.8, 1.5)]
    plot = won_by_round(won)
    said = "After 1 round the model wins 0.70 [0.61, 0.79] of the comparisons with itself before the first."
    assert plot.finding == said
    assert plot.table.rows == [(0, 0.5, 0.5, 0.5), (1, 0.7, 0.61, 0.79)]
    plot = won_for_distance(won, moved)
    assert plot.finding == "For that it moved 1.50 [1.20, 1.80] nats an answer away from itself as it was."
    assert plot.table.rows[1] == (1, 1.5, 1.2, 1.8, 0.7)
