"""What `models info` shows on a terminal. Knows nothing about how the facts were found."""

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from maypole.models.verbs import ModelInfo


def table(info: "ModelInfo") -> Group:
    """Facts of the model, of the adapter, then the family tree, oldest first, a paragraph a step."""
    parts: list[Any] = []
    if info.model is not None:
        m = info.model
        context = "not limited" if m.context is None else f"{m.context:,} tokens"
        parts.append(
            _pairs(
                family=m.family,
                parameters=f"{m.parameters:,}",
                layers=f"{m.layers} of width {m.width:,}",
                dtype=m.dtype,
                vocabulary=f"{m.vocabulary:,} (tokenizer {m.tokens:,})",
                context=context,
                chat_template="yes" if m.chat_template else "no",
                packed_execution=m.packed,
                block_views=m.blocks,
            )
        )
    if info.adapter is not None:
        a = info.adapter
        settings = ", ".join(f"{name} {value}" for name, value in a.settings.items())
        parts.append(
            _pairs(
                adapter=f"{a.type}, {a.parameters:,} parameters, {a.dtype}",
                base=a.base,
                targets=", ".join(a.target_modules),
                settings=settings,
            )
        )
    if info.note:
        parts.append(_clean(f"note  {info.note}"))
    parts.append(Text("\nfamily, oldest first", style="bold"))
    for step in info.family:
        origin = f"  from {', '.join(step.made_from)}" if step.made_from else ""
        parts.append(_clean(f"{step.name}  ({step.kind}){origin}"))
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in (step.numbers or {}).items())
        for label, text in (("", step.changed), ("", numbers), ("$ ", step.command), ("note: ", step.note)):
            if text:
                parts.append(_clean(f"    {label}{text}"))
    return Group(*parts)


def _pairs(**values: str) -> Table:
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in values.items():
        if value:
            shown.add_row(name.replace("_", " "), _clean(value))
    return shown


def _clean(text: str) -> Text:
    """Names and settings come from files: control characters are shown, never obeyed."""
    return Text("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))
