"""What the server's routes take, field by field, from the server's own description of itself. Starts no server."""

from typing import Any

from maypole.serve import bodies
from maypole.serve.parrot import bodies as programs
from rendering.tables import table

ROUTES = {
    "POST /v1/chat/completions": bodies.ChatBody,
    "POST /v1/completions": bodies.CompletionBody,
    "POST /v1/embeddings": bodies.Embeddings,
    "POST /tokenize": bodies.Tokenize,
    "POST /detokenize": bodies.Detokenize,
    "POST /v1/sessions": programs.SessionBody,
    "POST /v1/semantic_calls": programs.CallBody,
    "POST /v1/semantic_calls/batch": programs.BatchBody,
    "POST /v1/variables": programs.VariableBody,
    "PUT /v1/variables/{id}": programs.ValueBody,
}
_BOUNDS = {
    "minimum": "at least {}", "exclusiveMinimum": "above {}", "maximum": "at most {}", "exclusiveMaximum": "below {}",
    "minLength": "length at least {}", "maxLength": "length at most {}", "minItems": "at least {} items",
    "maxItems": "at most {} items", "maxProperties": "at most {} entries",
}  # fmt: skip


def http() -> str:
    """A section per route that takes a body."""
    parts = []
    for route, body in ROUTES.items():
        schema = body.model_json_schema()
        required = schema.get("required", ())
        rows = [
            (f"`{name}`", _kind(field), _default(field, name in required), ", ".join(_bounds(field)))
            for name, field in schema["properties"].items()
        ]
        parts += [f"## {route}", "", table(("field", "type", "default", "bounds"), rows), ""]
    return "\n".join(parts).rstrip()


def _kind(field: dict[str, Any]) -> str:
    options = [option for option in field.get("anyOf", ()) if option != {"type": "null"}]
    if options:
        return " or ".join(dict.fromkeys(_kind(option) for option in options))
    if "enum" in field or "const" in field:
        return ", ".join(f'`"{value}"`' for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    return str(field.get("type", "object"))


def _default(field: dict[str, Any], required: bool) -> str:
    """Where it says more than that a field may be left out."""
    if required:
        return "**required**"
    found = _first(field, "default")
    return "" if found in (None, "") else f"`{str(found).lower() if isinstance(found, bool) else found}`"


def _bounds(field: dict[str, Any]) -> list[str]:
    found = [says.format(f"{field[name]:,}") for name, says in _BOUNDS.items() if name in field]
    for option in field.get("anyOf", ()):
        found += [bound for bound in _bounds(option) if bound not in found]
    return found


def _first(field: dict[str, Any], name: str) -> Any:
    if name in field:
        return field[name]
    return next((found for option in field.get("anyOf", ()) if (found := _first(option, name)) is not None), None)
