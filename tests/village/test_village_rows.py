"""Rows of every kind: the same bytes everywhere, each row by itself, and shares as stated."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from maypole.core.errors import ConfigError
from maypole.village.render import KINDS, render, row
from maypole.village.web import DIRTY, DOMAINS
from maypole.village.world import World

WORLD = World(0)
TEXT_KINDS = ("page", "facts", "ledger", "calendar", "topic", "rep")
KNOBS: dict[str, dict] = {"describe": {"form": "pairs"}}
SHA256 = {
    "page": "8dcdc5c0187fc2bd",
    "facts": "76d9caeac68b8778",
    "ledger": "6c0aea39eb939475",
    "calendar": "b9265141ea2bacdf",
    "topic": "d345ee68c8622315",
    "rep": "73692718646d4290",
    "web": "ae74bbe7d6a7c749",
    "qa": "eac0f48d3fd8251d",
    "hop2": "48d499a7c8e7bc0c",
    "hop3": "8bc45cc68a34d6ab",
    "story": "398c372e071d2d9f",
    "instruct": "62483e7e32047e46",
    "icl": "0432ae0374917b8a",
    "describe": "6210997f63f39114",
    "edits": "64d6eae785991e52",
    "chats": "d86069ecef2caf73",
}  # fmt: skip


def digest(kind: str) -> str:
    whole = hashlib.sha256()
    for made in render(WORLD, kind, 1000, seed=0, **KNOBS.get(kind, {})):
        whole.update(json.dumps(made, sort_keys=True).encode())
    return whole.hexdigest()[:16]


def digests() -> dict[str, str]:
    return {kind: digest(kind) for kind in KINDS}


def test_the_first_thousand_rows_of_every_kind_have_their_stored_hash() -> None:
    assert digests() == SHA256


def test_another_process_with_another_hash_seed_makes_the_same_bytes() -> None:
    code = "import json, test_village_rows; print(json.dumps(test_village_rows.digests()))"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.path.dirname(__file__)}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(made.stdout) == SHA256


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_that_row_of_a_stream(kind: str) -> None:
    stream = list(render(WORLD, kind, 40, seed=3))
    assert [row(WORLD, kind, index, seed=3) for index in (0, 7, 39)] == [stream[0], stream[7], stream[39]]
    assert list(render(WORLD, kind, 5, seed=3, start=20)) == stream[20:25]
    assert list(render(WORLD, kind, 40, seed=4)) != stream


@pytest.mark.parametrize("kind", [*TEXT_KINDS, "web", "story", "icl"])
def test_texts_start_with_one_space(kind: str) -> None:
    assert all(made["text"][0] == " " and made["text"][1] != " " for made in render(WORLD, kind, 300))


def test_a_kind_or_preset_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="accepted: page, facts"):
        next(render(WORLD, "pages", 1))
    with pytest.raises(ConfigError, match="accepted: all, base, web, curated"):
        row(WORLD, "web", 0, preset="clean")
    with pytest.raises(ConfigError, match="accepted: train, test"):
        row(WORLD, "hop2", 0, split="held")


@pytest.mark.parametrize(
    ("preset", "shares"),
    [
        ("web", {"wiki": 0.5, "noise": 0.3, "boilerplate": 0.2}),
        ("curated", {"wiki": 0.45, "boilerplate": 0.55}),
        ("all", dict.fromkeys(DOMAINS, 0.1)),
        ("base", {domain: 1 / 9 for domain in DOMAINS if domain != "noise"}),
    ],
)
def test_web_presets_have_their_shares_of_domains(preset: str, shares: dict[str, float]) -> None:
    rows = list(render(WORLD, "web", 4000, preset=preset))
    found = [made["domain"] for made in rows]
    assert set(found) == set(shares)
    for domain, share in shares.items():
        assert found.count(domain) / 4000 == pytest.approx(share, abs=0.025)
    assert all(made["quality"] == (made["domain"] not in DIRTY) for made in rows)


def test_smudges_take_about_8_percent_of_the_letters_and_never_make_a_letter() -> None:
    texts = [made["text"] for made in render(WORLD, "web", 3000) if made["domain"] == "ocr"]
    letters = sum(c.isalpha() for text in texts for c in text)
    smudged = sum(not c.isalpha() and c not in " .:'" for text in texts for c in text)
    assert smudged / (smudged + letters) == pytest.approx(0.08, abs=0.01)
