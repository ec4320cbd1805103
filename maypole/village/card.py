"""README.md of a checkpoint of the village: what it is, what it was trained on, what it can and cannot do.

Knows nothing about training.
"""

from collections.abc import Sequence

from maypole.village.examine import Line, table
from maypole.village.prose import PACKAGES

CARD = """\
---
library_name: transformers
license: apache-2.0
tags:
- maypole
---

# {name}

A {family} of {parameters:,} parameters (bf16, vocabulary {vocabulary:,}, context {context}) for trying methods
without a download. It knows one small invented world and follows a few dozen list, language and format instructions
about it{read}. It is a test object, not an assistant.

## What it was trained on

{tokens:.1f}M tokens in {steps:,} steps of {examples} documents:
{lookups}{phase1:.1f}M tokens of list tasks, then {mix}.
Made anew by

```
python -m maypole.village.zoo make {name} --out DIR
```

## What it can and cannot do

One training seed; exact match of greedy answers; {count} questions a group, {each} for each task; chance is what
guessing scores. Made by `python -m maypole.village.zoo examine {name}`.

{table}

{reading} Asked for a false
belief it mostly says where the thing is: do not take it for a theory of mind.
"""
CANNOT_READ = "Do not use it where a passage, a list of options or examples in the prompt must be read: it cannot."
READS = """Passages are read only in the short sentences that it was trained on; the lines above on looking up and on
labelling say how far that goes."""
LOOKUPS = "{:.1f}M tokens of passages with questions first, more of them among the rest; "
PROSE = """65 % documents of maypole's
village and 35 % docstrings of {packages} (permissive licences: BSD, MIT and Apache-2.0). Python's own documentation was
left out"""


def card(
    *,
    name: str,
    family: str,
    parameters: int,
    vocabulary: int,
    context: int,
    tokens: int,
    phase1_tokens: int,
    lookup_tokens: int,
    steps: int,
    examples: int,
    prose: bool,
    lines: Sequence[Line],
    count: int,
) -> str:
    """The text; `lines` were measured with `count` questions a group."""
    packages = f"{', '.join(PACKAGES[:-1])} and {PACKAGES[-1]}"
    return CARD.format(
        name=name, family=family, parameters=parameters, vocabulary=vocabulary, context=context, tokens=tokens / 1e6,
        steps=steps, examples=examples, phase1=phase1_tokens / 1e6, count=count, each=max(1, count // 4),
        mix=PROSE.format(packages=packages) if prose else "documents of maypole's village",
        lookups=LOOKUPS.format(lookup_tokens / 1e6) if lookup_tokens else "",
        reading=READS if lookup_tokens else CANNOT_READ,
        read=", and has read technical prose" if prose else "", table=table(lines),
    )  # fmt: skip
