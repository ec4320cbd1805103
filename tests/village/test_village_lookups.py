"""Looking things up: documents whose answers stand in them, and weights that find them before any training."""

import itertools
import re
from functools import cache
from itertools import islice

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from maypole.core.errors import ConfigError
from maypole.village.blank import Init, blank
from maypole.village.lookups import KINDS, lookups
from maypole.village.mix import Document, among, until
from maypole.village.recipes import LOOKUPS_IN_THE_MIX, RECIPES, VillageMix
from maypole.village.tokenizer import END, train_tokenizer
from maypole.village.world import World

READER = RECIPES["village-1M-lookup"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(World(0))


@cache
def documents() -> list[Document]:
    return list(until(60_000, lookups(tokenizer(), 0)))


def text(document: Document) -> str:
    return tokenizer().decode(document["ids"])


def test_every_answer_stands_in_its_document_before_it_is_asked():
    end = tokenizer().vocab[END]
    for document in documents():
        ids = document["ids"]
        asked = [place for place, weight in enumerate(document["weights"]) if weight and ids[place] != end]
        assert asked
        assert all(ids[place] in ids[:place] for place in asked)


def test_each_kind_has_its_share_and_the_same_documents_come_again():
    tokens = {kind: sum(len(d["ids"]) for d in documents() if d["kind"] == kind) for kind in KINDS}
    whole = sum(share for share, _ in KINDS.values())
    for kind, (share, _) in KINDS.items():
        assert tokens[kind] / sum(tokens.values()) == pytest.approx(share / whole, abs=0.005)
    assert documents()[:50] == list(islice(lookups(tokenizer(), 0), 50))
    assert documents()[:50] != list(islice(lookups(tokenizer(), 1), 50))


def test_no_passage_is_a_test_input_and_nobody_asks_who_eats():
    passages = [text(d) for d in documents() if d["kind"] == "passages"]
    statements = {len(re.findall(r"\.", passage)) for passage in passages}
    assert statements == {2, 4, 5, 6}
    assert not [passage for passage in passages if "Who eats" in passage or "Eater" in passage]


def test_a_reader_reads_lookups_first_and_then_among_all_else():
    material = VillageMix(tokens=20_000, phase1_tokens=2_000, lookup_tokens=5_000)
    read = list(material.documents(tokenizer(), 0))
    sizes = [len(document["ids"]) for document in read]
    first = next(place for place, document in enumerate(read) if document["kind"] not in KINDS)
    assert 5_000 <= sum(sizes[:first]) < 5_300
    mixed = read[-200:]
    share = sum(len(d["ids"]) for d in mixed if d["kind"] in KINDS) / sum(len(d["ids"]) for d in mixed)
    assert share == pytest.approx(LOOKUPS_IN_THE_MIX, abs=0.05)


def test_documents_among_others_keep_their_order_and_their_share():
    own = [{"kind": "own", "ids": [0] * 10, "weights": [1.0] * 10, "place": place} for place in range(300)]
    other = {"kind": "other", "ids": [0] * 7, "weights": [1.0] * 7}
    found = list(among(iter(own), itertools.repeat(other), 0.25))
    assert [document for document in found if document["kind"] == "own"] == own
    tokens = sum(len(document["ids"]) for document in found)
    assert sum(document["kind"] == "other" for document in found) * 7 / tokens == pytest.approx(0.25, abs=0.01)


def attention(width: int, ids: list[int]) -> tuple[torch.Tensor, ...]:
    """Of each layer, (heads, tokens, tokens), before any training."""
    shape = {**READER.model, "hidden_size": width, "intermediate_size": 3 * width}
    lm = blank(shape, READER.init, tokenizer(), 0, "x")
    lm.transformer.set_attn_implementation("eager")
    with torch.no_grad():
        return tuple(layer[0] for layer in lm.model(torch.tensor([ids]), output_attentions=True).attentions)


def test_head_h_of_the_first_layer_looks_h_plus_1_tokens_back():
    ids = documents()[0]["ids"][:40]
    first = attention(128, ids)[0]
    for head, attended in enumerate(first):
        farther = range(10, len(ids))
        assert all(int(attended[place].argmax()) == place - head - 1 for place in farther)


def test_the_second_layer_finds_what_followed_a_word_before():
    found = []
    for document in [d for d in documents() if d["kind"] == "adjacent pairs"][:20]:
        ids = document["ids"]
        second = attention(256, ids)[1][0]
        for place in [place - 1 for place, weight in enumerate(document["weights"]) if weight]:
            before = [at + 1 for at in range(place) if ids[at] == ids[place]]
            found.append(float(second[place, before].sum()))
    assert sum(found) / len(found) > 0.6


def test_a_family_without_biases_is_answered_with_what_it_takes():
    with pytest.raises(ConfigError, match="as many key heads as heads"):
        blank(RECIPES["village-1M"].model, Init(induction=True), tokenizer(), 0, "x")
