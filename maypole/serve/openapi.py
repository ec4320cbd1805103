"""What the routes take and answer, as an OpenAPI document for tools. Knows nothing about what routes do."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from maypole import __version__

_REF = "#/components/schemas/"
_STATUSES = {
    "400": "A field, the body or the host name is wrong.",
    "401": "No valid key.",
    "404": "No such route or model.",
    "408": "Not sent, or not answered, in time.",
    "409": "The variable has a value already.",
    "413": "The body is too long.",
    "424": "The variable will never have a value: its completion failed, or one that it depends on.",
    "429": "The queue is full, or the key has too much under way; Retry-After says when to come back.",
    "503": "The server is shutting down, or not well.",
}
_TEXT = {"type": "string"}
_OR_NULL = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": _TEXT, "type": _TEXT, "param": _OR_NULL, "code": _OR_NULL},
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def takes(body: type[BaseModel]) -> dict[str, Any]:
    """What a route says of the body it reads."""
    schema = body.model_json_schema(ref_template=_REF + "{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def described(app: FastAPI, models: Sequence[str]) -> dict[str, Any]:
    """The document, with the names of the models that are served now."""
    found = get_openapi(title="maypole", version=__version__, routes=app.routes)
    schemas: dict[str, Any] = {"Error": _ERROR}
    probes = {"/health", "/ready"}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schemas |= content["schema"].pop("$defs", {})
                if "model" in content["schema"]["properties"]:
                    content["schema"]["properties"]["model"] = {"enum": list(models)}
            answers = {"200": {"description": "What was asked for."}}
            errors = {s: _refusal(why) for s, why in _STATUSES.items() if not (s == "503" and path in probes)}
            sick = {"503": {"description": "Not well; `status` says why."}} if path in probes else {}
            operation["responses"] = answers | errors | sick
    found["components"] = {
        "schemas": schemas,
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    found["security"] = [{}, {"key": []}]
    return found


def _refusal(why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": {"$ref": _REF + "Error"}}}}
