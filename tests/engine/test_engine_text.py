import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maypole.engine.detokenizer import Detokenizer
from maypole.engine.prefix_tree import prefix_tree
from maypole.engine.settings import parse_bytes
from tests.engine.engine_fixtures import byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(st.lists(st.integers(0, 259), max_size=30))
def test_pieces_of_any_bytes_add_up_to_the_whole_text(ids: list[int]):
    text = Detokenizer(TOKENIZER)
    pieces = []
    for token in ids:
        text.push(token)
        pieces.append(text.take())
    pieces.append(text.finish())
    assert "".join(pieces) == text.text == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(st.text("abcé🙂", max_size=12), st.lists(st.text("abcé🙂", min_size=1, max_size=4), max_size=3))
def test_no_part_of_a_stop_string_is_handed_out(written: str, stop: list[str]):
    ids = TOKENIZER(written, add_special_tokens=False)["input_ids"]
    text = Detokenizer(TOKENIZER, stop)
    shown = ""
    for token in ids:
        ended = text.push(token)
        shown += text.take()
        if ended:
            break
    shown += text.finish()
    ends = [written.index(s) + len(s) for s in stop if s in written]
    if not ends:
        assert (shown, text.stopped_by) == (written, None)
        return
    first = min(ends)  # the text ends with the token that completes the first stop string
    cuts = [written[:first].index(s) for s in stop if s in written[:first]]
    assert shown == written[: min(cuts)]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6), st.data())
def test_a_prefix_tree_holds_every_sequence_and_every_beginning_once(sequences: list[list[int]], data: st.DataObject):
    groups = [data.draw(st.integers(0, 1)) for _ in sequences]
    tree = prefix_tree([np.array(s) for s in sequences], groups)
    for path, sequence in zip(tree.paths, sequences):
        assert tree.tokens[path].tolist() == sequence
        assert tree.positions[path].tolist() == list(range(len(sequence)))
    beginnings = {(g, *s[: n + 1]) for g, s in zip(groups, sequences) for n in range(len(s))}
    assert len(tree.tokens) == len(beginnings)
    assert sum(len(p) - s for p, s in zip(tree.paths, tree.starts)) == len(tree.tokens)


def test_bytes_are_read_as_people_write_them():
    assert [parse_bytes("kv_bytes", v) for v in (5, "5", "1GiB", "1.5 MB", "2kib")] == [5, 5, 2**30, 1_500_000, 2048]
