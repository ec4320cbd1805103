"""What is kept of prompts is found again, whatever else is kept."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maypole.engine import Engine, Request, Sampling
from maypole.engine.prefix_cache import LEAST, Node, PrefixCache
from maypole.engine.prefix_tree import Ids
from tests.engine.engine_fixtures import lm_of

PROMPTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(0, 2), st.integers(0, 20)), max_size=30)


def ids_of(head: int, length: int, tail: int, more: int) -> Ids:
    """All begin alike, some for long."""
    return np.array([9, *[head] * length, *[5 + tail] * more], dtype=np.int64)


def keep(cache: PrefixCache, ids: Ids) -> Node | None:
    parent, missing = cache.missing("key", ids)
    return cache.insert("key", ids, parent, {}) if missing else parent


def whole(node: Node | None) -> list[int]:
    runs = [] if node is None else [run.tokens for run in node.chain()][::-1]
    return [int(token) for run in runs for token in run]


@given(PROMPTS, st.integers(0, 3), st.integers(1, 40))
def test_what_was_kept_is_found_whole_and_the_rest_as_far_as_it_begins_alike(made, head, length):
    cache, kept = PrefixCache(), list[Ids]()
    for one in made:
        kept.append(ids_of(*one))
        keep(cache, kept[-1])
    for ids in kept:
        assert whole(cache.match("key", ids, len(ids))) == ids.tolist()
    asked = ids_of(head, length, 3, 5)
    found = whole(cache.match("key", asked, len(asked)))
    assert found == asked[: len(found)].tolist()
    common = max((int((np.cumprod(ids[: len(asked)] == asked[: len(ids)])).sum()) for ids in kept), default=0)
    assert common - LEAST < len(found) <= common
    nodes = list(cache.nodes())
    assert cache.tokens == sum(len(node.tokens) for node in nodes)
    assert all(child.parent is node and child.start == node.end for node in nodes for child in node.children.values())
    while cache.evict():
        pass
    assert (cache.tokens, list(cache.nodes())) == (0, [])


def test_every_prompt_that_begins_with_the_same_token_is_found_again():
    engine = Engine(lm_of())
    prompts = [engine.encode(f"{word} " * 12) for word in ("one", "two", "three", "four")]
    assert len({prompt[0] for prompt in prompts}) == 1
    asked = [Request(prompt, Sampling(max_tokens=2, temperature=0, ignore_eos=True)) for prompt in prompts]
    first = [engine.generate([one])[0] for one in asked]
    again = [engine.generate([one])[0] for one in asked]
    assert [one.usage.cached_tokens for one in again] == [len(prompt) - 1 for prompt in prompts]
    assert [one.token_ids for one in again] == [one.token_ids for one in first]
