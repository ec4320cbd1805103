"""A hub id as a local directory, so that everything else reads directories. Knows nothing about what is in them."""

from pathlib import Path

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from maypole.core.errors import UserError

_FILES: tuple[str, ...] = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_OTHER_FORMATS = ["*/*", "consolidated*", "*.fp16.*"]


def local(name: str | Path, *, revision: str | None = None, code: bool = False) -> Path:
    """The directory `name`, or the snapshot of the hub id `name` in the hub's cache, downloaded where needed.

    `code` also fetches Python files. Pickled weights are never fetched. UserError says what is not there.
    """
    text, path = str(name), Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError("this is a file", text, "a directory or a hub id")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise UserError("no such directory", text, "a directory, or a hub id such as owner/name")
    try:
        wanted = [*_FILES, *(["*.py"] if code else [])]
        found = snapshot_download(text, revision=revision, allow_patterns=wanted, ignore_patterns=_OTHER_FORMATS)
        return Path(str(found))
    except GatedRepoError as error:
        raise UserError(
            "the hub asks for its terms to be accepted", text, "accept them, then: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"has no revision {revision!r} on the hub", text, "a branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise UserError("neither a directory here nor a repository on the hub", text, "check its spelling") from error
    except HFValidationError as error:
        raise UserError("no such directory, and not a hub id", text, "a directory or owner/name") from error
    except (LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        hint = "a directory, or a hub id that is in the hub's cache or can be downloaded now"
        raise UserError("no such directory, and the hub cannot be reached", text, hint) from error


def is_hub_id(name: str) -> bool:
    """Whether `name` names nothing on this disk."""
    return not Path(name).exists()


def commits(options: object) -> dict[str, object]:
    """What the hub ids among `options`' models and adapters name now, as inputs of a result: branches move on."""
    found: dict[str, object] = {}
    for field in ("model", "adapter", "against", "against_adapter"):
        name = getattr(options, field, None)
        if name is not None and name.count("/") == 1 and is_hub_id(name):
            revision = getattr(options, "revision", None) if field == "model" else None
            found[f"{field}_commit"] = local(name, revision=revision).name
    return found
