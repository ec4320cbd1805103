"""What there is, room by room: the README's table, the page of rooms, the site's navigation."""

from pathlib import Path

from maypole import catalogue
from maypole.cli.commands import COMMANDS, POLE
from rendering.tables import table

PAGES = Path(__file__).parent.parent / "systems"


def systems() -> str:
    """The table of systems for the README, whose links start at the top of the repository."""
    rows = []
    for room, purpose in catalogue.ROOMS.items():
        for place, system in enumerate(s for s in catalogue.SYSTEMS if s.room == room):
            named = f"**{room}** ({purpose})" if not place else ""
            rows.append((named, *_system(system, "docs/systems/")))
    return table(("room", "system", "paper", "command", ""), rows)


def rooms() -> str:
    """A section per room: who would come, to which system; what else the room can do today."""
    parts = []
    for room, purpose in catalogue.ROOMS.items():
        found = [s for s in catalogue.SYSTEMS if s.room == room]
        rows = [(s.need, *_system(s, "systems/")) for s in found]
        own = {tuple(s.command.split()[:2]) for s in found}
        plain = [path for path in COMMANDS if path[0] == room and path not in own]
        parts += [f"## {room}: {purpose}", "", table(("your situation", "system", "paper", "command", ""), rows), ""]
        parts += [_commands("Also there", plain), ""] if plain else []
    return "\n".join(parts).rstrip()


def pole() -> str:
    """The words that are no rooms, with their commands."""
    rows = [(f"`{word}`", purpose, _links([p for p in COMMANDS if p[0] == word])) for word, purpose in POLE.items()]
    return table(("word", "to", "commands"), rows)


def navigation() -> str:
    """Lines of mkdocs.yml: the systems that have a page."""
    pages = [f"      - {s.id}: systems/{s.id}.md" for s in catalogue.SYSTEMS if (PAGES / f"{s.id}.md").is_file()]
    return "\n".join(["  - Systems:", *pages] if pages else [])


def _system(system: catalogue.System, folder: str) -> tuple[str, ...]:
    """Title (a link once there is a page), paper, command, and whether it is only announced."""
    title = f"[{system.title}]({folder}{system.id}.md)" if system.built or system.partly else system.title
    left = "" if system.built else f"planned; {system.partly}" if system.partly else "planned"
    return title, f"[{system.arxiv}]({system.source})", f"`maypole {system.command}`", left


def _commands(said: str, paths: list[tuple[str, ...]]) -> str:
    return f"{said}: {_links(paths)}."


def _links(paths: list[tuple[str, ...]]) -> str:
    return ", ".join(f"[`maypole {' '.join(p)}`](reference/commands.md#{'-'.join(('maypole', *p))})" for p in paths)
