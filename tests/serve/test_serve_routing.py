"""Which replica is asked: a pure function of what was asked before."""

from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maypole.serve import routing
from maypole.serve.routing import BLOCKS, CHARACTERS, LENIENCE, Affinity, chain_of

LONG = "The same instructions for everyone. " * 40


def asked(prompt: Any, model: str = "base", **more: Any) -> routing.Chain:
    return chain_of({"model": model, "prompt": prompt, **more}, "base")


def test_prompts_that_begin_alike_have_chains_that_begin_alike():
    one, other = asked(LONG + "a" * CHARACTERS), asked(LONG + "b" * CHARACTERS)
    same = len(LONG) // CHARACTERS
    assert one[: same + 1] == other[: same + 1]
    assert set(one[same + 1 :]).isdisjoint(other[same + 1 :])


@pytest.mark.parametrize("change", [{"model": "fr"}, {"cache_salt": "mine"}, {"tools": [{"type": "function"}]}])
def test_what_is_cached_apart_is_routed_apart(change: dict[str, Any]):
    plain, changed = asked(LONG), chain_of({"model": "base", "prompt": LONG, **change}, "base")
    assert set(plain[1:]).isdisjoint(changed[1:])


def test_chats_and_prompts_of_ids_have_blocks_too():
    chat = [{"role": "system", "content": LONG}, {"role": "user", "content": "hello"}]
    longer = [*chat, {"role": "assistant", "content": "hi"}, {"role": "user", "content": LONG}]
    one, other = (chain_of({"model": "base", "messages": messages}, "base") for messages in (chat, longer))
    assert one[:5] == other[:5]
    assert len(asked(list(range(1000)))) == 1 + 1000 // routing.IDS
    assert asked([LONG, "other"]) == asked(LONG)
    assert len(asked(LONG * 1000)) == BLOCKS + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@given(JSON)
def test_no_document_stops_the_router(value: Any):
    for field in ("prompt", "messages", "input", "model", "cache_salt", "tools"):
        chain = chain_of({"model": "base", "prompt": "x", field: value}, "base")
        assert 1 <= len(chain) <= BLOCKS + 1
        assert all(isinstance(block, bytes) for block in chain)


def test_each_prefix_stays_where_it_was_and_prefixes_spread():
    affinity, first = Affinity(), dict[int, str]()
    for at, prefix in zip(range(80), cycle(range(8))):
        name = affinity.choose(["a", "b"], asked(f"{prefix}" * 1000 + str(at)))[0]
        assert first.setdefault(prefix, name) == name
        affinity.begin(name)
        affinity.end(name)
    assert sorted(first.values()) == ["a"] * 4 + ["b"] * 4


def test_an_adapter_stays_where_it_is_loaded_though_the_prompt_is_new():
    affinity = Affinity()
    home = affinity.choose(["a", "b"], asked("short", "fr"))[0]
    other = affinity.choose(["a", "b"], asked("short", "de"))[0]
    assert home != other
    assert affinity.choose(["a", "b"], asked(LONG, "fr"))[0] == home


def test_a_much_busier_replica_is_passed_over_and_the_next_has_the_prefix_then():
    affinity = Affinity()
    home = affinity.choose(["a", "b"], asked(LONG))[0]
    for _ in range(LENIENCE):
        affinity.begin(home)
    assert affinity.choose(["a", "b"], asked(LONG))[0] == home
    affinity.begin(home)
    other = affinity.choose(["a", "b"], asked(LONG))[0]
    assert other != home
    assert affinity.choose([other], asked(LONG)) == [other]


def test_a_replica_that_is_gone_is_forgotten_whole():
    affinity = Affinity()
    home = affinity.choose(["a", "b"], asked(LONG))[0]
    affinity.begin(home)
    affinity.keep({"a", "b"} - {home})
    assert len(affinity) == 0
    assert affinity.running[home] == 0
    affinity.end(home)
    assert affinity.running[home] == 0


def test_what_is_remembered_is_bounded_and_beginnings_outlive_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routing, "REMEMBERED", 8)
    affinity = Affinity()
    for prompt in ("x" * 1024, "y" * 1024, "z" * 1024):
        affinity.choose(["a"], asked(prompt))
        assert len(affinity) <= 8
    assert affinity.choose(["a", "b"], asked("y" * 300))[0] == "a"
    assert affinity._held["a"] == len(affinity)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60))
def test_no_replica_is_much_busier_than_the_least_busy(moves: list[tuple[int, int]]):
    affinity, names = Affinity(), ["a", "b", "c"]
    for kind, prefix in moves:
        busiest = max(names, key=lambda name: affinity.running[name])
        if kind == 0 and affinity.running[busiest]:
            affinity.end(busiest)
        ranked = affinity.choose(names, asked(f"{prefix}" * 600))
        assert sorted(ranked) == names
        least = min(affinity.running[name] for name in names)
        affinity.begin(ranked[0])
        assert affinity.running[ranked[0]] <= least + max(LENIENCE, least) + 1
