"""Whether the pages of a built site load anything from another host: ``python docs/check_site.py site`` exits 1 if so.

Links a reader may follow are no matter; what a browser fetches by itself is. Knows nothing about what builds the site.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

FETCHED = ("src", "srcset", "poster", "data")
_ELSEWHERE = re.compile(r"^\s*(?:https?:)?//")
_IN_STYLES = re.compile(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)")


class _Page(HTMLParser):
    """Collects the addresses that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        fetched = [given[name] for name in FETCHED if name in given]
        if tag == "link" and given.get("rel") != "canonical":
            fetched.append(given.get("href", ""))
        self.found += [address for address in fetched if _ELSEWHERE.match(address)]
        self.found += _IN_STYLES.findall(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.found += _IN_STYLES.findall(data)


def foreign(site: Path) -> Iterator[str]:
    """A line ``FILE: ADDRESS`` for everything that comes from elsewhere."""
    for file in sorted(site.rglob("*.html")):
        page = _Page()
        page.feed(file.read_text())
        yield from (f"{file.relative_to(site)}: {address}" for address in page.found)
    for file in sorted(site.rglob("*.css")):
        yield from (f"{file.relative_to(site)}: {address}" for address in _IN_STYLES.findall(file.read_text()))


def main() -> int:
    site = Path(sys.argv[1])
    if not (site / "index.html").is_file():
        print(f"{site}: no site was built here", file=sys.stderr)
        return 2
    found = list(foreign(site))
    print("\n".join(f"loads from another host: {line}" for line in found), end="\n" * bool(found), file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
