"""Writes the parts of README and docs that derive from the code: nobody types a table of systems twice.

A derived part stands between the lines ``<!-- NAME -->`` and ``<!-- /NAME -->``, or ``<!-- NAME: ARGUMENT -->`` and
its ``/``, where NAME is one of `MAKERS`; whatever stands around it is written by hand. ``python docs/render.py``
rewrites them, ``--check`` exits 1 where one is out of date (a test does the same). Knows nothing about what stands in
them.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rendering import commands, files, http, numbers, reference, systems, zoo

ROOT = Path(__file__).parent.parent
PLACES = ("README.md", "mkdocs.yml", "docs/**/*.md", "docs/stylesheets/*.css")
MAKERS: dict[str, Callable[..., str]] = {
    "systems": systems.systems,
    "rooms": systems.rooms,
    "pole": systems.pole,
    "navigation": systems.navigation,
    "commands": commands.commands,
    "flags": commands.shared,
    "http": http.http,
    "rows": reference.rows,
    "shapes": reference.shapes,
    "config": reference.config,
    "python": reference.python,
    "claim": numbers.claim,
    "claims": numbers.claims,
    "benchmarks": numbers.benchmarks,
    "file": files.listing,
    "contributing": files.contributing,
    "palette": files.palette,
    "zoo": zoo.zoo,
    "runs": zoo.runs,
}
"""The name of a derived part -> what makes it, from its argument if it has one."""

_MARK = re.compile(r"<!-- (?P<name>[a-z]+)(?:: (?P<argument>\S+))? -->")


def pages() -> list[str]:
    """Files that may hold derived parts; a name with _ in front is a template."""
    found = {p for place in PLACES for p in ROOT.glob(place) if not p.name.startswith("_")}
    return sorted(p.relative_to(ROOT).as_posix() for p in found)


def rendered(name: str) -> str:
    """The file with its derived parts made anew; ValueError where a part does not end."""
    return "".join(_lines(name, iter((ROOT / name).read_text().splitlines(keepends=True))))


def _lines(name: str, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line
        mark = _MARK.search(line)
        if mark is None or mark["name"] not in MAKERS:
            continue
        yield MAKERS[mark["name"]](*filter(None, [mark["argument"]])) + "\n"
        end = mark[0].replace("<!-- ", "<!-- /")
        closing = next((later for later in lines if end in later), None)
        if closing is None:
            raise ValueError(f"{name}: {mark[0]} has no {end}")
        yield closing


def main() -> int:
    stale = [name for name in pages() if rendered(name) != (ROOT / name).read_text()]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{name} is out of date: python docs/render.py" for name in stale), file=sys.stderr)
        return bool(stale)
    for name in stale:
        (ROOT / name).write_text(rendered(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
