import importlib
from pathlib import Path

from maypole import catalogue
from maypole.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent


def test_thirty_three_systems_with_unique_ids_in_known_rooms():
    assert len(catalogue.SYSTEMS) == 33
    assert len({s.id for s in catalogue.SYSTEMS}) == 33
    assert {s.room for s in catalogue.SYSTEMS} == set(catalogue.ROOMS)


def test_entries_follow_the_naming_rule():
    for s in catalogue.SYSTEMS:
        assert s.entry.startswith(f"maypole.{s.room}.{s.id.replace('-', '_')}:")


def missing(system: catalogue.System) -> list[str]:
    """What a built system lacks."""
    lacks = []
    module, _, name = system.entry.partition(":")
    try:
        getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        lacks.append(f"entry {system.entry}")
    words = tuple(word for word in system.command.split() if not word.startswith("--"))[:2]
    if words not in COMMANDS and words[:1] not in COMMANDS:
        lacks.append(f"command {' '.join(words)}")
    if not (ROOT / "maypole" / "claims" / f"{system.id.replace('-', '_')}.py").is_file():
        lacks.append("claim")
    if not (ROOT / "docs" / "systems" / f"{system.id}.md").is_file():
        lacks.append("docs page")
    return lacks


def test_built_systems_have_entry_command_claim_and_page():
    assert {s.id: missing(s) for s in catalogue.SYSTEMS if s.built and missing(s)} == {}


def test_a_system_that_is_partly_there_has_a_claim_and_a_page():
    for s in catalogue.SYSTEMS:
        if s.partly:
            assert not s.built
            assert {"claim", "docs page"}.isdisjoint(missing(s)), s.id


def test_a_system_that_is_not_there_is_found_out():
    nowhere = catalogue.System("none", "None", "0000.00000", "curate", "maypole.curate.none:run", "curate none", "-")
    assert missing(nowhere) == ["entry maypole.curate.none:run", "command curate none", "claim", "docs page"]


def test_rooms_exist_as_packages_that_say_their_one_idea():
    packages = [*catalogue.ROOMS, "core", "data", "models", "engine", "train", "village", "tour", "claims", "cli"]
    for name in packages:
        module = importlib.import_module(f"maypole.{name}")
        assert (module.__doc__ or "").startswith(("Floor", "Room")), name
