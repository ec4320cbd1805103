import pytest

from maypole.claims.effects import Effect
from maypole.claims.verdict import combine, judge


def _effects(ours, baseline, threshold, rule, **more):
    return [Effect("e", "acc", o, b, threshold, rule, **more) for o, b in zip(ours, baseline)]


def test_at_three_seeds_every_seed_has_to_pass():
    assert judge(_effects([0.6, 0.7, 0.8], [0.5, 0.5, 0.5], 0.1, "difference>="))["holds"]
    failed = judge(_effects([0.55, 0.9, 0.9], [0.5, 0.5, 0.5], 0.1, "difference>="))
    assert not failed["holds"]
    assert failed["ci95"] == pytest.approx([0.05, 0.4])
    assert failed["difference"] == pytest.approx(0.2833333)


def test_with_fewer_seeds_the_point_estimate_decides_and_there_is_no_interval():
    verdict = judge(_effects([0.55, 0.9], [0.5, 0.5], 0.1, "difference>="))
    assert verdict["holds"]
    assert verdict["ci95"] is None


@pytest.mark.parametrize(
    ("ours", "baseline", "threshold", "rule", "holds"),
    [
        ([0.1] * 3, [0.5] * 3, -0.3, "difference<=", True),
        ([0.1] * 3, [0.3] * 3, -0.3, "difference<=", False),
        ([3.0, 4.0, 5.0], [1.0] * 3, 3.0, "ratio>=", True),
        ([2.9, 4.0, 5.0], [1.0] * 3, 3.0, "ratio>=", False),
        ([0.5] * 3, [1.0] * 3, 0.5, "ratio<=", True),
        ([0.9, 0.9, 0.9], [None] * 3, 0.9, "ours>=", True),
        ([0.9, 0.9, 0.91], [None] * 3, 0.9, "ours<=", False),
    ],
)
def test_every_rule_decides_by_the_unfavourable_end(ours, baseline, threshold, rule, holds):
    assert judge(_effects(ours, baseline, threshold, rule))["holds"] is holds


def test_a_mean_decides_by_itself_where_the_rule_says_so():
    ours, baseline = [1.0, 2.0, 6.0], [0.0, 0.0, 0.0]
    assert judge(_effects(ours, baseline, 3.0, "mean difference>="))["holds"]
    assert not judge(_effects(ours, baseline, 3.1, "mean difference>="))["holds"]
    assert judge(_effects(ours, baseline, 3.0, "mean difference>="))["difference"] == pytest.approx(3.0)


def test_the_document_has_the_fields_of_the_result_file():
    verdict = judge(_effects([0.9], [None], 0.5, "ours>=", control=True))
    assert verdict == {
        "name": "e",
        "metric": "acc",
        "ours": [0.9],
        "baseline": None,
        "difference": 0.9,
        "ci95": None,
        "threshold": 0.5,
        "rule": "ours>=",
        "control": True,
        "holds": True,
    }


def test_seeds_that_measured_different_effects_cannot_be_combined():
    with pytest.raises(ValueError, match="measured different effects"):
        combine([_effects([1.0], [0.0], 0.1, "difference>="), _effects([1.0], [0.0], 0.2, "difference>=")])


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((float("nan"), 0.1, 0.1, "difference>="), "ours is nan"),
        ((0.1, None, 0.1, "difference>="), "needs a baseline"),
        ((0.1, 0.0, 0.1, "ratio>="), "needs a baseline above 0"),
        ((0.1, 0.0, 0.1, "above"), "rule 'above' is none of"),
    ],
)
def test_an_effect_that_says_nothing_is_refused(numbers, said):
    with pytest.raises(ValueError, match=said):
        Effect("e", "acc", *numbers)
