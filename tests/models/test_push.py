"""Pushing, against a hub of our own that speaks the part of the HTTP API that pushing needs."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from maypole.cli.main import run
from maypole.core.errors import ConfigError, RemoteError, UserError
from maypole.models import PeftOptions, load, new_adapter, save
from maypole.models.hub import push
from maypole.models.verbs import ExportOptions

TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Keeps what is committed; `refuses` maps a part of a path to the status and message that answer it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.refuses: dict[str, tuple[int, str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        path = self.path.removeprefix("/api/")
        self.server.calls.append(path)
        refused = next((answer for part, answer in self.server.refuses.items() if part in path), None)
        if refused:
            self._answer(refused[0], {"error": refused[1], "url": f"{self.server.url}/me/made"})
        elif path == "repos/create":
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"{self.server.url}/me/made"})
        elif path == "validate-yaml":
            errors = [] if b"---" in body else [{"message": "no head"}]
            self._answer(400 if errors else 200, {"errors": errors, "warnings": []})
        elif path == "models/me/made/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            self._answer(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif path == "models/me/made/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/me/made/commit/{'0' * 40}"
            self._answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": url})

    def _answer(self, status: int, document: dict) -> None:
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def base(make, monkeypatch, tmp_path) -> Path:
    monkeypatch.chdir(tmp_path)
    return make("llama", name="base")


def command(line: str) -> int:
    return run(f"models {line}".split())


def test_a_directory_is_pushed_when_it_is_whole_into_a_repository_for_its_owner(base, hub, capsys):
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert command("export --model base --out clean --push-to-hub me/made --json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["url"] == f"{hub.url}/me/made"
    assert hub.created == [{"name": "made", "organization": "me", "visibility": "private"}]
    written = {file.name: file.read_bytes() for file in Path("clean").iterdir()}
    assert hub.files == written
    assert hub.files["README.md"].startswith(b"---\nlicense: mit")
    assert TOKEN not in out + err


def test_a_gguf_file_goes_with_the_card_of_its_model_and_public_is_said(base, hub, monkeypatch):
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("maypole.models.gguf.export_gguf", lambda lm, out, **options: out.write_bytes(b"GGUF"))
    assert command("export --model base --to gguf --out m.gguf --push-to-hub me/made --public") == 0
    assert hub.files == {"README.md": (base / "README.md").read_bytes(), "m.gguf": b"GGUF"}
    assert hub.created[0]["visibility"] == "public"


def test_a_repository_that_exists_gets_a_commit_more(base, hub):
    hub.refuses["repos/create"] = (409, "You already created this model repo")
    assert push({"config.json": base / "config.json"}, "me/made") == f"{hub.url}/me/made"
    assert hub.files == {"config.json": (base / "config.json").read_bytes()}


@pytest.mark.parametrize(
    ("part", "status", "error", "said"),
    [
        ("repos/create", 401, UserError, r"me/made: the hub does not know the token: nope\n  hint: hf auth login"),
        ("commit", 403, UserError, r"me/made: the token may not write there: nope\n  hint: a token with write access"),
        ("preupload", 404, UserError, "me/made: the hub does not take it"),
        ("commit", 418, RemoteError, "me/made: the hub answered 418: nope"),
    ],
)
def test_what_the_hub_refuses_is_said_without_the_token(base, hub, part, status, error, said):
    hub.refuses[part] = (status, "nope")
    with pytest.raises(error, match=said) as caught:
        push({"config.json": base / "config.json"}, "me/made")
    assert TOKEN not in str(caught.value)
    assert hub.files == {}


def test_a_card_with_a_broken_head_is_named(base, hub):
    (base / "README.md").write_text("no head")
    with pytest.raises(UserError, match=r"does not take README\.md"):
        push({"README.md": base / "README.md"}, "me/made")
    assert hub.files == {}


def test_a_hub_that_cannot_be_reached_may_be_tried_again(base, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(RemoteError, match=r"cannot be reached \(.*what was written stays") as caught:
        push({"config.json": base / "config.json"}, "me/made")
    assert caught.value.retryable


def test_nothing_is_written_where_nothing_could_be_pushed(base, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("maypole.models.hub.get_token", lambda: None)
    assert command("export --model base --out o --push-to-hub me/made") == 2
    assert "nobody is logged in to the hub here\n  hint: hf auth login, or set HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setattr("maypole.models.hub.get_token", lambda: TOKEN)
    for name in ("made", "a/b/c", "me/", "me/ma de"):
        assert run(["models", "export", "--model", "base", "--out", "o", "--push-to-hub", name]) == 2
        assert "hint: accepted: owner/name" in capsys.readouterr().err
    save(new_adapter(load(base), PeftOptions(r=2, target_modules=("q_proj",)), seed=0), tmp_path / "adapted")
    assert command("export --model adapted --out o --push-to-hub me/made") == 2
    assert "is on this disk only, where nobody else finds it" in capsys.readouterr().err
    assert not Path("o").exists()
    with pytest.raises(ConfigError, match="together with --push-to-hub"):
        ExportOptions(model="m", out=Path("o"), public=True)
