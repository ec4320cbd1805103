"""Writes the parts of README and docs that derive from the code: nobody types a table of systems twice.

``python docs/render.py`` rewrites them, ``--check`` exits 1 where one is out of date (a test does the same).
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from maypole import catalogue

ROOT = Path(__file__).parent.parent


def systems() -> str:
    """The table of systems, room by room."""
    lines = ["| room | system | paper | command | |", "|---|---|---|---|---|"]
    for room, purpose in catalogue.ROOMS.items():
        for place, system in enumerate(s for s in catalogue.SYSTEMS if s.room == room):
            named = f"**{room}** ({purpose})" if not place else ""
            state = "" if system.built else "planned"
            title = f"[{system.title}](docs/systems/{system.id}.md)" if system.built else system.title
            paper = f"[{system.arxiv}]({system.source})"
            lines.append(f"| {named} | {title} | {paper} | `maypole {system.command}` | {state} |")
    return "\n".join(lines)


def benchmarks() -> str:
    """A table for each result under benchmarks/results."""
    parts = []
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(file.read_text())
        machine = f"{found['machine']['cpu']}, {found['machine']['cores']} cores"
        parts += [f"## {found['name']}", "", f"`python benchmarks/{found['name']}.py` on {machine}.", ""]
        parts += ["| case | ours | peer | unit | ratio | target | GB ours / peer |", "|---|---|---|---|---|---|---|"]
        for case in found["cases"]:
            memory = " / ".join(f"{size / 1e9:.2f}" for size in case["peak_rss_bytes"].values())
            target = "" if case["target"] is None else f"{case['target']:g}{'' if case['met'] else ' (missed)'}"
            peer = f"{case['peer']:,.0f} ({case['peer_name']})"
            numbers = (case["case"], f"{case['ours']:,.0f}", peer, case["unit"], f"{case['ratio']:.2f}", target, memory)
            parts.append(f"| {' | '.join(numbers)} |")
        parts.append("")
    return "\n".join(parts).rstrip()


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"systems": systems},
    "docs/performance.md": {"benchmarks": benchmarks},
}
"""File -> the name between its markers ``<!-- NAME -->`` and ``<!-- /NAME -->`` -> what stands there."""


def rendered(name: str) -> str:
    """The file with its derived parts made anew."""
    text = (ROOT / name).read_text()
    for part, make in PARTS[name].items():
        pattern = re.compile(rf"<!-- {part} -->\n.*?\n<!-- /{part} -->", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{name}: expected the markers of {part!r} once")
        begin, end = pattern.split(text)
        text = f"{begin}<!-- {part} -->\n{make()}\n<!-- /{part} -->{end}"
    return text


def main() -> int:
    stale = [name for name in PARTS if rendered(name) != (ROOT / name).read_text()]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{name} is out of date: python docs/render.py" for name in stale), file=sys.stderr)
        return bool(stale)
    for name in stale:
        (ROOT / name).write_text(rendered(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
