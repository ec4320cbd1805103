"""Markdown tables. Knows nothing about what stands in them."""

from collections.abc import Iterable, Sequence


def table(names: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """A table with a line for each of `rows`; the columns called `right` are aligned right."""
    rule = ["---:" if name in right else "---" for name in names]
    lines = [names, rule, *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """`text` so that it can neither end its cell nor begin a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
