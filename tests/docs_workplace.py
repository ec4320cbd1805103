"""The folder in which the commands and snippets of the docs are run: small files under the names that pages use."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import maypole

BASE = Path(maypole.__file__).parent / "village" / "base" / "village-1M"
NAMES = ("Mara", "Tomas", "Ilse", "Bram", "Odile", "Pauli")
THINGS = ("the well", "the mill", "the bees", "the bridge")
JUDGE = """
def score(prompts, completions, **columns):
    return [-len(c) for c in completions]


def prefers(prompts, a, b, **columns):
    return [1.0 if len(x) < len(y) else 0.0 if len(x) > len(y) else 0.5 for x, y in zip(a, b)]
"""

FACTS = """
from maypole.evaluate import AtomicChecker

checker = AtomicChecker(lambda topics, texts: [t.split(". ") for t in texts], lambda facts, found: [True] * len(facts))
"""
FIND = """
def search(query, k):
    return [f"{query}: nobody has written about that."][:k]
"""


def furnish(folder: Path) -> None:
    """Put a model (`base`, and as `reference`), keys, an adapter, a program and all common rows into `folder`."""
    for name in ("base", "reference"):
        (folder / name).symlink_to(BASE)
    facts = [(name, thing) for name in NAMES for thing in THINGS]
    chats = [{"messages": _talk(f"Who keeps {thing}?", f"{name} does.")} for name, thing in facts]
    questions = [{"question": f"Who keeps {thing}?", "answers": [name]} for name, thing in facts]
    texts = [
        {"id": f"{name}-{thing[4:]}", "text": f"{name} keeps {thing}. " * (1 + i % 4), "domain": f"from {name[0]}"}
        for i, (name, thing) in enumerate(facts)
    ]
    write_rows(folder / "chats.jsonl", chats[:16])
    write_rows(folder / "held-out.jsonl", chats[16:])
    write_rows(folder / "questions.jsonl", questions)
    write_rows(folder / "notes.jsonl", texts)
    write_rows(folder / "prompts.jsonl", [{"prompt": row["question"]} for row in questions])
    pairs = [{"prompt": f"Who keeps {thing}? ", "chosen": name, "rejected": "Nobody"} for name, thing in facts]
    write_rows(folder / "pairs.jsonl", pairs)
    asked = [{"prompt": f"Who keeps {thing}?", "completion": f" {name} does."} for name, thing in facts]
    write_rows(folder / "asked.jsonl", asked)
    write_rows(folder / "known.jsonl", [{"title": name, "text": f"{name} keeps {thing}."} for name, thing in facts])
    write_rows(folder / "answers.jsonl", [{"topic": name, "output": f"{name} keeps {thing}."} for name, thing in facts])
    (folder / "judge.py").write_text(JUDGE)
    (folder / "facts.py").write_text(FACTS)
    (folder / "find.py").write_text(FIND)
    (folder / "keys.txt").write_text("a-key\n")
    (folder / "adapters" / "fr").mkdir(parents=True)
    (folder / "adapters" / "fr" / "adapter_config.json").write_text("{}")
    for name in ("summary.py", "gap.yaml"):
        (folder / name).symlink_to(Path(__file__).parent.parent / "examples" / name)
    (folder / "corpus").mkdir()
    write_rows(folder / "corpus" / "a.jsonl", texts[:12])
    write_rows(folder / "corpus" / "b.jsonl.gz", texts[12:])
    (folder / "notes").mkdir()
    (folder / "notes" / "village.md").write_text("# The village\n\n" + " ".join(row["text"] for row in texts))


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`rows` as JSON lines, compressed where the name ends in .gz."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode(), mtime=0) if file.suffix == ".gz" else text.encode())


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
