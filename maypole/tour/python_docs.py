"""The tour's default corpus: the documentation that every Python carries, a document per topic, module or definition.

Read from the installed standard library without importing it: `pydoc_data.topics` and the docstrings of public names
with their signatures. Knows nothing about models, and what it yields is in no base that ships.
"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

MIN_CHARACTERS = 80
MAX_CHARACTERS = 6000
SAME_START = 200
LEFT_OUT = frozenset(
    {"site-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "distutils", "ensurepip", "turtledemo",
     "pydoc_data", "__pycache__", "lib-dynload", "antigravity.py", "this.py"}
)  # fmt: skip
"""Tests, tools without public names, and distutils, whose docstrings setuptools also carries."""
ALSO_ELSEWHERE = frozenset(
    {
        "ast.NodeVisitor", "ast.NodeTransformer", "glob.glob", "glob.iglob", "inspect.formatargvalues",
        "inspect.getargs", "inspect.getargvalues", "inspect.getfullargspec", "inspect.iscode", "inspect.isfunction",
        "inspect.ismethod", "shutil.make_archive", "sysconfig.expand_makefile_vars", "sysconfig.get_config_vars",
        "sysconfig.parse_config_h", "weakref.WeakKeyDictionary.keyrefs", "weakref.WeakValueDictionary.itervaluerefs",
        "weakref.WeakValueDictionary.valuerefs",
    }
)  # fmt: skip
"""Docstrings that other packages have copied: a base trained on those packages' documentation would know them."""
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_docs(stdlib: Path | None = None) -> Iterator[dict[str, str]]:
    """Rows {text, path}: first the language topics, then each documented public name, files in order of their names.

    A text opens with its heading ("json.dumps(obj, *, skipkeys=False, ...)"), has at most 6000 characters (longer ones
    are cut at empty lines and numbered), and no two begin alike; bodies below 80
    characters are left out. `path` is "topics/NAME" or "module/DOTTED.NAME".
    """
    directory = stdlib or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for path, heading, body in (*_topics(directory), *_definitions(directory)):
        start = body[:SAME_START]
        if len(body) < MIN_CHARACTERS or start in seen or path.removeprefix("module/") in ALSO_ELSEWHERE:
            continue
        seen.add(start)
        text = f"{heading}\n\n{body}" if heading else body
        for number, part in enumerate(split_at_paragraphs(text, MAX_CHARACTERS)):
            yield {"text": part, "path": path if number == 0 else f"{path}#{number + 1}"}


def split_at_paragraphs(text: str, limit: int) -> list[str]:
    """Parts of at most `limit` characters that end at empty lines; a longer paragraph is cut at a line, at a space, or
    by force."""
    parts: list[str] = []
    while len(text) > limit:
        cuts = ((text.rfind(mark, limit // 4, limit), len(mark)) for mark in ("\n\n", "\n", " "))
        at, length = next(((at, length) for at, length in cuts if at > 0), (limit, 0))
        parts.append(text[:at].rstrip())
        text = text[at + length :].strip("\n")
    if text.strip():
        parts.append(text.rstrip())
    return parts


def _topics(directory: Path) -> Iterator[tuple[str, str, str]]:
    """(path, "", text) of `pydoc_data/topics.py`, which assigns one dictionary literal."""
    file = directory / "pydoc_data" / "topics.py"
    if not file.is_file():
        return
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict):
            for name, text in ast.literal_eval(value).items():
                yield f"topics/{name}", "", text.strip()


def _definitions(directory: Path) -> Iterator[tuple[str, str, str]]:
    for file in _public_files(directory):
        module = ".".join(file.relative_to(directory).with_suffix("").parts).removesuffix(".__init__")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        documentation = ast.get_docstring(tree, clean=False)
        if documentation:
            yield f"module/{module}", module, cleandoc(documentation)
        yield from _members(module, tree)


def _public_files(directory: Path) -> Iterator[Path]:
    for entry in sorted(directory.iterdir(), key=lambda path: path.name):
        private = entry.name.startswith(("_", ".")) and entry.name != "__init__.py"
        if private or entry.name in LEFT_OUT or entry.name.startswith("test_"):
            continue
        if entry.is_dir():
            yield from _public_files(entry)
        elif entry.suffix == ".py":
            yield entry


def _members(owner: str, node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    """Public classes and functions right inside `node`, and those inside its classes, in the order of the source."""
    for member in node.body:
        if not isinstance(member, Definition) or member.name.startswith("_"):
            continue
        name = f"{owner}.{member.name}"
        documentation = ast.get_docstring(member, clean=False)
        if documentation:
            yield f"module/{name}", _heading(name, member), cleandoc(documentation)
        if isinstance(member, ast.ClassDef):
            yield from _members(name, member)


def _heading(name: str, node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    return f"{name}({ast.unparse(node.args)})"
