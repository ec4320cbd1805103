import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maypole.core.errors import ConfigError, DataError, UserError
from maypole.engine import Engine, EngineConfig
from maypole.evaluate import document_nll, perplexity, windows
from tests.engine.engine_fixtures import BOS, lm_of, random_ids, with_adapters


@given(
    length=st.integers(0, 60),
    max_length=st.integers(3, 20),
    overlap=st.integers(0, 8),
    bos=st.sampled_from([None, 1]),
    led=st.booleans(),
)
def test_windows_score_every_token_exactly_once(length: int, max_length: int, overlap: int, bos: int | None, led: bool):
    ids = [*([1] if led and bos else []), *range(100, 100 + length)]
    if (bos is not None) + (overlap if bos else max(overlap, 1)) >= max_length:
        with pytest.raises(ConfigError, match="overlap"):
            windows(ids, max_length, overlap=overlap, bos=bos)
        return
    found = windows(ids, max_length, overlap=overlap, bos=bos)
    scored = [t for w in found for t in w.ids[w.start :]]
    assert scored == list(range(100 if bos else 101, 100 + length))
    for window in found:
        assert 1 <= window.start < len(window.ids) <= max_length
        assert ids[window.first] == window.ids[window.start]
        assert (window.ids[0] == bos) == (bos is not None)
        context = window.ids[(bos is not None) : window.start]
        assert context == ids[window.first - len(context) : window.first]
        assert len(context) >= min(overlap, window.first - (led and bos is not None))


@torch.no_grad()
def _plain(model, ids: list[int], start: int = 1) -> float:
    logps = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    return -float(sum(logps[i - 1, ids[i]] for i in range(start, len(ids))))


def test_it_equals_a_plain_loop_over_documents():
    lm = lm_of("mistral")
    texts = ["one", "a somewhat longer document", "", "the third of them"]
    found = perplexity(lm, texts)
    ids = [lm.tokenizer(t)["input_ids"] for t in texts if t]
    expected = [_plain(lm.model, i) for i in ids]
    np.testing.assert_allclose(found.nll, expected, rtol=1e-6)
    assert found.tokens.tolist() == [len(i) - 1 for i in ids]
    assert (found.documents.tolist(), found.dropped) == ([0, 1, 3], 1)
    assert found.perplexity == pytest.approx(np.exp(sum(expected) / found.tokens.sum()), rel=1e-6)
    assert found.interval.low < found.perplexity < found.interval.high
    assert found.interval.mean == pytest.approx(found.perplexity)


def test_a_long_document_is_the_sum_of_its_windows():
    lm = lm_of("llama", max_position_embeddings=32)
    document = random_ids([100])[0]
    found = perplexity(lm, [document])
    pieces = [[BOS, *document[a : a + 31]] for a in range(0, 100, 31)]
    assert found.nll[0] == pytest.approx(sum(_plain(lm.model, p) for p in pieces), rel=1e-5)
    assert found.tokens[0] == 100
    closer = perplexity(lm, [document], max_length=20, overlap=7)
    first = _plain(lm.model, [BOS, *document[:19]])
    rest = [(max(0, a - 7), a, min(a + 12, 100)) for a in range(19, 100, 12)]
    expected = first + sum(_plain(lm.model, [BOS, *document[b:e]], 1 + a - b) for b, a, e in rest)
    assert closer.nll[0] == pytest.approx(expected, rel=1e-5)


def test_batches_and_engines_make_no_difference():
    lm = with_adapters(lm_of("gemma2"), "a")
    documents = random_ids([3, 40, 17, 9, 40, 2])
    whole = perplexity(lm, documents)
    small = perplexity(Engine(lm, EngineConfig(max_batch_tokens=20)), documents, adapter="a")
    np.testing.assert_allclose(whole.nll, small.nll, rtol=1e-5)
    base = perplexity(lm.with_adapter(None), documents)
    change = whole.change_from(base)
    assert change.mean == pytest.approx(whole.perplexity - base.perplexity)


def test_the_beginning_of_a_document_may_stand_for_all_of_it():
    lm = lm_of(max_position_embeddings=32)
    (long,), (short,) = random_ids([100]), random_ids([5])
    found = document_nll(Engine(lm), [long, [BOS, *long], short], max_tokens=40)
    whole = perplexity(lm, [long[:40], short])
    assert [tokens for _, tokens in found] == [40, 40, 5]
    np.testing.assert_allclose([nll for nll, _ in found], whole.nll[[0, 0, 1]], rtol=1e-6)


def test_rows_count_where_they_teach():
    lm = lm_of()
    tokenizer = lm.tokenizer
    text = perplexity(lm, [{"text": "abc"}])
    assert text.nll[0] == pytest.approx(perplexity(lm, ["abc"]).nll[0])
    pair = perplexity(lm, [{"prompt": "ab", "completion": "cd"}])
    ids = tokenizer("abcd")["input_ids"]
    assert (pair.tokens[0], len(ids)) == (3, 5)
    assert pair.nll[0] == pytest.approx(_plain(lm.model, [*ids, 2], 3), rel=1e-5)
    with pytest.raises(DataError, match="row 2"):
        perplexity(lm, [{"text": "abc"}, {"label": 1}])
    with pytest.raises(UserError, match="none of 2 documents"):
        perplexity(lm, ["", ""])


def test_progress_is_told_in_documents():
    done: list[int] = []
    perplexity(lm_of(), random_ids([2] * 300), step=done.append)
    assert done == [256, 44]


def test_windows_longer_than_the_models_context_are_an_error():
    lm = lm_of("gpt2")
    with pytest.raises(ConfigError, match=f"--max-length: .*\\n.*at most the model's {lm.max_length} positions"):
        perplexity(lm, ["one text"], max_length=lm.max_length + 1)
