"""The hub's repositories as directories here, and files here as a commit there. Knows nothing about what is in them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from maypole.core.errors import ConfigError, RemoteError, UserError

_HTTPError: type[Exception] = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
"""Of the library that the hub's client speaks HTTP with: httpx, later httpx2."""
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
    wanted = [*_FILES, *(["*.py"] if code else [])]
    with _translated(text, revision):
        found = snapshot_download(text, revision=revision, allow_patterns=wanted, ignore_patterns=_OTHER_FORMATS)
        return Path(str(found))


def fetched(hub_id: str, files: Sequence[str], *, max_bytes: int) -> Path:
    """The snapshot of a repository's `files` in the hub's cache, downloaded where needed; no directory has its name.

    UserError where they are longer than `max_bytes` together, which is asked before any of them comes.
    """
    wanted = list(files)
    with _translated(hub_id, None):
        validate_repo_id(hub_id)
        try:
            there = snapshot_download(hub_id, allow_patterns=wanted, dry_run=True)
        except DryRunError:  # no connection: what is in the cache has been asked about before
            there = []
        size = sum(file.file_size or 0 for file in there)
        if size > max_bytes:
            raise UserError(f"its files have {size:,} bytes", hub_id, f"at most {max_bytes:,}")
        return Path(str(snapshot_download(hub_id, allow_patterns=wanted)))


@contextmanager
def _translated(name: str, revision: str | None) -> Iterator[None]:
    """The hub's errors as ours."""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            "the hub asks for its terms to be accepted", name, "accept them, then: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"has no revision {revision!r} on the hub", name, "a branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise UserError("neither a directory here nor a repository on the hub", name, "check its spelling") from error
    except HFValidationError as error:
        raise UserError("no such directory, and not a hub id", name, "a directory or owner/name") from error
    except (LocalEntryNotFoundError, _HTTPError, OSError) as error:
        hint = "a directory, or a hub id that is in the hub's cache or can be downloaded now"
        raise UserError("no such directory, and the hub cannot be reached", name, hint) from error


def is_hub_id(name: str) -> bool:
    """Whether `name` names nothing on this disk."""
    return not Path(name).exists()


def check_push(repo: str) -> None:
    """An error unless `repo` is the name of a repository and somebody is logged in; asks nobody."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError("push_to_hub", repo, "owner/name") from error
    if repo.count("/") != 1:
        raise ConfigError("push_to_hub", repo, "owner/name")
    if not get_token():
        raise UserError("nobody is logged in to the hub here", "--push-to-hub", "hf auth login, or set HF_TOKEN")


def push(files: Mapping[str, Path], repo: str, *, public: bool = False) -> str:
    """Put `files` (name there -> file here) into the model repository `repo` in one commit; returns its address.

    The repository is made where there is none, for its owner's eyes unless `public`; one that exists stays as visible
    as it is. The token is that of the environment or of `hf auth login`.
    """
    check_push(repo)
    api = HfApi(library_name="maypole")
    additions = [CommitOperationAdd(name, file) for name, file in files.items()]
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        return str(api.create_commit(repo, additions, commit_message="Export from maypole").repo_url)
    except HfHubHTTPError as error:
        raise _refused(error, repo) from error
    except ValueError as error:  # what it says of a card whose head is not valid
        what = f"the hub does not take README.md: {_first_line(error)}"
        raise UserError(what, repo, "valid YAML at its top") from error
    except (OfflineModeIsEnabled, _HTTPError) as error:
        what = f"the hub cannot be reached ({_first_line(error)}); what was written stays, and hf upload can send it"
        raise RemoteError(what, retryable=True) from error


def _refused(error: HfHubHTTPError, repo: str) -> UserError | RemoteError:
    status = error.response.status_code
    said = error.server_message or _first_line(error)
    if status == 401:
        return UserError(f"the hub does not know the token: {said}", repo, "hf auth login, or another HF_TOKEN")
    if status == 403:
        return UserError(f"the token may not write there: {said}", repo, "a token with write access to its owner")
    if status in (400, 404, 409, 422):
        return UserError(f"the hub does not take it: {said}", repo, "another owner/name")
    return RemoteError(f"{repo}: the hub answered {status}: {said}", retryable=status >= 500 or status == 429)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def commits(options: object) -> dict[str, object]:
    """What the hub ids among `options`' models and adapters name now, as inputs of a result: branches move on."""
    found: dict[str, object] = {}
    for field in ("model", "adapter", "against", "against_adapter"):
        name = getattr(options, field, None)
        if name is not None and name.count("/") == 1 and is_hub_id(name):
            revision = getattr(options, "revision", None) if field == "model" else None
            found[f"{field}_commit"] = local(name, revision=revision).name
    return found
