"""The folder in which the commands and snippets of the docs are run: small files under the names that pages use."""

import gzip
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

import maypole
from maypole.cli.commands import COMMANDS

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
    """Put models, adapters, keys, a program and all common rows into `folder`.

    `base` is whole, and stands under other names too; `new` has no weights; adapters are whole as far as headers tell.
    """
    for name in ("base", "reference", "encoder", "merged"):
        (folder / name).symlink_to(BASE)
    (folder / "new").mkdir()
    for file in BASE.iterdir():
        if file.suffix != ".safetensors":
            (folder / "new" / file.name).symlink_to(file)
    for name in ("adapted", "aligned", "runs/adapted", "adapters/fr"):
        _adapter(folder / name)
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
    asked = [(f"{name} or nobody: who {does} {thing}? ", name) for does in ("keeps", "mends") for name, thing in facts]
    pairs = [{"prompt": prompt, "chosen": name, "rejected": "Nobody"} for prompt, name in asked]
    write_rows(folder / "pairs.jsonl", pairs)
    answered = [{"prompt": f"Who keeps {thing}?", "completion": f" {name} does."} for name, thing in facts]
    write_rows(folder / "asked.jsonl", answered)
    write_rows(folder / "completions.jsonl", answered)
    write_rows(folder / "a.jsonl", chats)
    pq.write_table(pa.Table.from_pylist(chats), folder / "b.parquet")
    write_rows(folder / "known.jsonl", [{"title": name, "text": f"{name} keeps {thing}."} for name, thing in facts])
    answers = [{"topic": name, "output": f"{name} keeps {thing}.", "prompt": name} for name, thing in facts]
    write_rows(folder / "answers.jsonl", [{**row, "ours": row["output"], "theirs": "Nobody."} for row in answers])
    (folder / "judge.py").write_text(JUDGE)
    (folder / "facts.py").write_text(FACTS)
    (folder / "find.py").write_text(FIND)
    (folder / "keys.txt").write_text("a-key\n")
    (folder / "examples").symlink_to(Path(__file__).parent.parent / "examples")
    for name in ("summary.py", "gap.yaml"):
        (folder / name).symlink_to(Path(__file__).parent.parent / "examples" / name)
    (folder / "corpus").mkdir()
    write_rows(folder / "corpus" / "a.jsonl", texts[:12])
    write_rows(folder / "corpus" / "b.jsonl.gz", texts[12:])
    (folder / "notes").mkdir()
    (folder / "notes" / "village.md").write_text("# The village\n\n" + " ".join(row["text"] for row in texts))


def _adapter(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(BASE)}))
    save_file({"weight": np.zeros(1, np.float32)}, path / "adapter_model.safetensors")


def examples(*path: str) -> list[str]:
    """What follows the command's words in each example that its help gives, e.g. of ``examples("train", "sft")``."""
    module, _, name = COMMANDS[path][0].partition(":")
    text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    command = " ".join(["maypole", *path])
    lines = [line.strip() for line in text.splitlines() if line.startswith("    maypole ")]
    assert all(line.startswith(command) for line in lines), lines
    return [line.removeprefix(command) for line in lines]


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`rows` as JSON lines, compressed where the name ends in .gz."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode(), mtime=0) if file.suffix == ".gz" else text.encode())


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
