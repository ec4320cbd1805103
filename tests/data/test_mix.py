import logging

import pytest
from datasets import Dataset

from maypole.core.errors import ConfigError, DataError
from maypole.data import TEXT, read, stream


def rows(name: str, count: int, **extra) -> Dataset:
    return Dataset.from_list([{"text": f"{name}{i}", **extra} for i in range(count)])


def test_a_weight_is_the_expected_share_of_rows_and_order_within_a_source_is_kept():
    texts = read([rows("a", 9000), rows("b", 9000)], TEXT, mix=(3, 1))["text"][:8000]
    for name, share in (("a", 0.75), ("b", 0.25)):
        own = [t for t in texts if t.startswith(name)]
        assert own == [f"{name}{i}" for i in range(len(own))]
        assert abs(len(own) / 8000 - share) < 0.015  # three standard errors


def test_the_mix_ends_where_the_source_drawn_next_is_used_up_and_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="maypole"):
        texts = read([rows("a", 5000), rows("b", 50)], TEXT, mix=(1, 1))["text"]
    used = sum(t.startswith("b") for t in texts)
    assert used == 50
    assert len(set(texts)) == len(texts)
    assert 60 < len(texts) < 150
    assert f"the mix ends after {len(texts)} rows" in caplog.text


def test_the_seed_decides_the_order_and_nothing_else_does():
    sources = [rows("a", 3000), rows("b", 3000)]
    first, again, other = (
        [t for batch in stream(sources, TEXT, mix=mix, seed=seed) for t in batch.column("text").to_pylist()]
        for mix, seed in (((1, 1), 0), ((2, 2), 0), ((1, 1), 1))
    )
    assert first == again
    assert first != other


def test_without_mix_sources_follow_one_another_and_missing_columns_are_null():
    found = read([rows("a", 2, n=1), rows("b", 1)], TEXT)
    assert found.to_list() == [{"text": "a0", "n": 1}, {"text": "a1", "n": 1}, {"text": "b0", "n": None}]


def test_columns_of_either_source_are_in_every_mixed_row():
    found = read([rows("a", 40, n=1), rows("b", 40, m="x")], TEXT, mix=(1, 1))
    assert found.column_names == ["text", "n", "m"]
    assert {(r["text"][0], r["n"], r["m"]) for r in found.to_list()} == {("a", 1, None), ("b", None, "x")}


@pytest.mark.parametrize("mix", [(1,), (1, 0), (1, -1), (1, float("nan")), (1, float("inf"))])
def test_weights_that_cannot_be_shares_are_refused(mix):
    with pytest.raises(
        ConfigError, match=r"--mix: .* does not work\n  hint: accepted: (one weight per|weights above 0)"
    ):
        read([rows("a", 2), rows("b", 2)], TEXT, mix=mix)


def test_an_empty_source_in_a_mix_is_an_error_and_not_an_empty_result():
    with pytest.raises(DataError, match="there are no rows"):
        read([rows("a", 2).select([]), rows("b", 2)], TEXT, mix=(1, 1e-9))
