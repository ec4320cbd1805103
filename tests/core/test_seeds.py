from hypothesis import given
from hypothesis import strategies as st

from maypole.core.seeds import derive, uniform


def test_derive_is_stable_and_separates_names():
    assert derive(0, "init") == derive(0, "init")
    assert len({derive(0, "a", 1), derive(0, "a", "1"), derive(0, "a1"), derive(1, "a", 1)}) == 4


@given(st.integers(0, 2**32), st.text(), st.integers(0, 10**6))
def test_uniform_is_in_the_half_open_unit_interval(seed, name, index):
    assert 0.0 <= uniform(seed, name, index) < 1.0
