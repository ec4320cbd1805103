"""Real technical prose for the shipped base: docstrings of installed dependencies, read from their source by `ast`.

Nothing is imported, so nothing runs. Python's own documentation is left out: that is what the tour adapts to and
measures on. The packages' licences are permissive (BSD, MIT, Apache-2.0). Knows no tokenizer.
"""

import ast
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path

PACKAGES = (
    "numpy",
    "torch",
    "transformers",
    "sympy",
    "networkx",
    "jinja2",
    "setuptools",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
)
MIN_CHARACTERS = 160
SAME_START = 200
LEFT_OUT = frozenset({"tests", "test", "testing", "_testing", "conftest.py", "_vendor", "_vendored", "__pycache__"})


def package_directory(package: str) -> Path | None:
    """Where a top-level package lies, without importing it; None where it is not installed."""
    found = find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None


def source_files(directory: Path) -> Iterator[Path]:
    """Python files below `directory` in a fixed order, tests and vendored copies left out."""
    for entry in sorted(directory.iterdir(), key=lambda path: path.name):
        if entry.name in LEFT_OUT or entry.name.startswith(("test_", ".")):
            continue
        if entry.is_dir():
            yield from source_files(entry)
        elif entry.suffix in (".py", ".pyi"):
            yield entry


def docstrings(source: str, module: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of a module, its classes and functions, in the order of the source; none where it does
    not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield name, cleandoc(text)
            inner = [n for n in node.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
            stack += [(f"{name}.{n.name}", n) for n in reversed(inner)]


def prose(packages: Sequence[str] = PACKAGES) -> Iterator[tuple[str, str]]:
    """(name, text) of each docstring of at least 160 characters, the first of those that start alike, package by
    package in the order given; packages that are not installed give none."""
    seen: set[str] = set()
    for package in packages:
        directory = package_directory(package)
        if directory is None:
            continue
        for path in source_files(directory):
            parts = path.relative_to(directory.parent).with_suffix("").parts
            source = path.read_text(encoding="utf-8", errors="replace")
            for name, text in docstrings(source, ".".join(parts)):
                if len(text) >= MIN_CHARACTERS and text[:SAME_START] not in seen:
                    seen.add(text[:SAME_START])
                    yield name, text
