"""The commands that serve a model and run a program. Load torch and the web server only when they run."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from maypole.core.artifact import Artifact
from maypole.core.atomic import write_atomic
from maypole.core.config import DryRun, ModelOptions, RunOptions, check, pass_on, required, setting
from maypole.core.errors import ConfigError, MissingExtra, UserError
from maypole.core.identity import plain
from maypole.engine.settings import ADAPTER_NAME

if TYPE_CHECKING:
    from maypole.serve.parrot.program import ProgramResult


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """What is served, where, to whom, and how much of it."""

    model: str | None = setting(None, input=True, help="model directory or hub id")
    name: str | None = setting(None, help="the model's name for clients; default: as given, a directory's last part")
    adapters: Path | None = setting(None, help="folder of adapter directories, each served by its name")
    host: str = setting("127.0.0.1", help="address to listen at")
    port: int = setting(8000, help="port to listen at")
    api_key_file: Path | None = setting(None, help="file with one accepted key a line; none: no key is asked for")
    allowed_host: tuple[str, ...] = setting(
        (), help='names clients may use for this server, beside localhost; "*": any'
    )
    allow_dynamic: bool = setting(
        False, help="let clients load, replace and unload adapters, from the folder --adapters"
    )
    allow_hub: bool = setting(False, help="let clients name adapters by hub id, which are then downloaded")
    max_adapters: int = setting(64, help="adapters that are at work at once; others wait for their turn")
    adapter_bytes: str = setting("1GiB", help="memory for adapters at work; one that needs more is refused")
    max_queue: int = setting(256, help="completions that may wait")
    max_per_key: int | None = setting(None, help="completions that one key may have under way; default: no limit")
    max_body: str = setting("4MiB", help="longest request")
    read_timeout: float = setting(30.0, help="seconds that the headers, and then the body, may take to come")
    max_tokens: int | None = setting(None, help="most tokens of a completion; default: what the context holds")
    timeout: float = setting(600.0, help="seconds an answer may take")
    stall: float = setting(5.0, help="seconds without a step of the engine after which /health fails")
    latency_tokens: int = setting(8192, help="tokens that programs have under way beside a call that is wanted soon")
    throughput_tokens: int = setting(65536, help="tokens that programs have under way where none is")
    max_sessions: int = setting(2048, help="programs that are open at once")
    session_ttl: float = setting(3600.0, help="seconds after its last use at which a program's session ends")
    drain: int = setting(30, help="seconds that answers under way have to finish when the server is stopped")
    max_seqs: int | None = setting(None, help="completions that run at once; default: 64, on a GPU 256")
    kv_bytes: str = setting("auto", help='memory for keys and values, such as "1GiB"')
    threads: int | None = setting(None, help="CPU threads; default: as many as cores")
    replicas: int = setting(1, help="engines that answer, each with weights of its own; several need --ray")
    ray: str | None = setting(None, help='where the replicas run: "local" or the address of a Ray cluster')
    dry_run: bool = setting(False, help="check settings, change nothing")

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError("port", self.port, "0 to 65535")
        if not 0 < self.latency_tokens <= self.throughput_tokens:
            raise ConfigError("latency_tokens", self.latency_tokens, "1 to --throughput-tokens")
        for field in (
            "max_queue", "max_per_key", "read_timeout", "max_tokens", "timeout", "stall", "max_seqs", "max_adapters",
            "threads", "replicas", "max_sessions", "session_ttl",
        ):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ConfigError(field, value, "a number above 0")
        if self.allow_dynamic and self.adapters is None:
            raise UserError("is required with --allow-dynamic", "--adapters", "the folder that clients may load from")
        if self.replicas > 1 and self.ray is None:
            raise UserError("is required with --replicas", "--ray", '"local", or the address of a Ray cluster')
        if self.ray is not None and self.allow_dynamic:
            expected = "one of them: replicas notice a replaced adapter themselves"
            raise UserError("is not available with --ray", "--allow-dynamic", expected)
        if self.drain < 0:
            raise ConfigError("drain", self.drain, "0 or more")
        if self.host in ("0.0.0.0", "::") and not self.allowed_host:
            raise UserError("is required when listening everywhere", "--allowed-host", 'a host name, or "*" for any')
        pass_on(ServeOptions, self)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names that requests may carry."""
        own = () if self.host in ("0.0.0.0", "::") else (f"[{self.host}]" if ":" in self.host else self.host,)
        return ("localhost", "127.0.0.1", "[::1]", *own, *self.allowed_host)

    def found_adapters(self) -> dict[str, Path]:
        """Name -> directory of every adapter in the folder."""
        if self.adapters is None:
            return {}
        if not self.adapters.is_dir():
            raise UserError("is no folder", f"--adapters {self.adapters}", "a folder of adapter directories")
        found = {path.parent.name: path.parent for path in sorted(self.adapters.glob("*/adapter_config.json"))}
        wrong = [name for name in found if not re.fullmatch(ADAPTER_NAME, name)]
        if wrong:
            raise UserError(f"an adapter cannot be served as {wrong[0]!r}", "--adapters", "letters, digits, . _ -")
        if not found and not self.allow_dynamic:
            raise UserError("holds no adapter", f"--adapters {self.adapters}", "folders with adapter_config.json")
        return found

    def keys(self) -> tuple[str, ...]:
        """The accepted keys."""
        if self.api_key_file is None:
            return ()
        try:
            lines = self.api_key_file.read_text().splitlines()
        except OSError as error:
            raise UserError(
                "cannot be read", f"--api-key-file {self.api_key_file}", "a file with a key a line"
            ) from error
        keys = tuple(line.strip() for line in lines if line.strip())
        if not keys:
            raise UserError("has no key", f"--api-key-file {self.api_key_file}", "one key a line")
        return keys


def serve(
    model: Annotated[str | None, Parameter(name="MODEL", help="model directory or hub id")] = None,
    /,
    *,
    config: ServeOptions | None = None,
) -> DryRun | None:
    """Serve a model and its adapters over HTTP, as OpenAI's clients expect it.

    Returns when it is stopped (SIGTERM or Ctrl-C) and the answers under way are finished; a second signal ends them.

        maypole serve runs/adapted
        maypole serve base --adapters adapters --api-key-file keys.txt --port 8001
        maypole serve base --replicas 2 --ray local
    """
    options = config or ServeOptions()
    options = replace(options, model=model or options.model)
    if options.model is None:
        raise UserError("is required", "MODEL", "model directory or hub id")
    adapters, keys = options.found_adapters(), options.keys()
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra("serve", "maypole serve") from error
    from maypole.engine.settings import EngineConfig, parse_bytes

    EngineConfig(max_seqs=options.max_seqs or "auto", kv_bytes=options.kv_bytes)
    parse_bytes("max_body", options.max_body)
    parse_bytes("adapter_bytes", options.adapter_bytes)
    if options.dry_run:
        from maypole.models.loadable import check_loadable

        check_loadable(options.model, adapter=options.adapter, revision=options.revision)
        return DryRun(reuses=tuple(map(str, adapters.values())))
    from maypole.serve.running import run

    to = {"host": options.host, "port": options.port, "drain": options.drain, "header_timeout": options.read_timeout}
    if options.ray is not None:
        from maypole.serve.replicas import open_front

        with open_front(options, keys=keys) as front:
            run(front, **to)
        return None
    from maypole.serve.opening import open_app

    engine, app = open_app(options, keys=keys, hosts=options.hosts)
    run(app, **to)
    engine.close()
    return None


@dataclass(frozen=True, kw_only=True)
class ProgramOptions(ModelOptions, RunOptions):
    """Which program runs, on what, and with which arguments."""

    file: Path | None = setting(None, input=True, help="Python file with a function main")
    model: str | None = setting(None, input=True, help="model directory or hub id")
    url: tuple[str, ...] = setting((), help="OpenAI-compatible endpoints to run on, instead of or beside --model")
    server: str | None = setting(None, help="a maypole serve that runs the whole program, instead of --model")
    arg: tuple[str, ...] = setting((), help="arguments of main: NAME=TEXT")
    engines: int = setting(1, help="engines over one copy of --model")
    criteria: str = setting("latency", help="how soon results are wanted: latency or throughput")
    tokenize: str = setting("rendered", help="rendered: prompts are read as one text; segment: piece by piece")
    cache_scope: str = setting("session", help="who may share prompts: call, session, key or public")
    latency_tokens: int = setting(8192, help="tokens under way on an engine beside a call that is wanted soon")
    throughput_tokens: int = setting(65536, help="tokens under way on an engine where none is")
    dot: Path | None = setting(None, key=False, help="write the program's graph for GraphViz")

    def __post_init__(self) -> None:
        check("criteria", self.criteria, ("latency", "throughput"))
        check("tokenize", self.tokenize, ("rendered", "segment"))
        check("cache_scope", self.cache_scope, ("call", "session", "key", "public"))
        if self.engines < 1:
            raise ConfigError("engines", self.engines, "a whole number above 0")
        if not 0 < self.latency_tokens <= self.throughput_tokens:
            raise ConfigError("latency_tokens", self.latency_tokens, "1 to --throughput-tokens")
        if self.server and (self.model or self.url):
            raise ConfigError("server", self.server, "no --model and no --url beside it")
        wrong = next((arg for arg in self.arg if not re.match(r"[A-Za-z_]\w*=", arg)), None)
        if wrong is not None:
            raise ConfigError("arg", wrong, "NAME=TEXT")
        pass_on(ProgramOptions, self)

    @property
    def arguments(self) -> dict[str, str]:
        """What main is given."""
        return dict(arg.split("=", 1) for arg in self.arg)


def program(
    file: Annotated[Path | None, Parameter(name="FILE", help="Python file with a function main")] = None,
    /,
    *,
    config: ProgramOptions | None = None,
) -> object:
    """Run a program of many calls where the engines are, and show what each call cost.

    Calls whose inputs are there run together; what their prompts begin with in common is computed once.

        maypole serve program summary.py --model base --arg text="A long story."
        maypole serve program summary.py --server http://127.0.0.1:8000 --arg text="A long story."
    """
    options = config or ProgramOptions()
    chosen = file or options.file
    if chosen is None:
        raise UserError("is required", "FILE", "a Python file with a function main")
    if not (options.model or options.url or options.server):
        required(options, "model")
    from maypole.serve.parrot.program import load_program

    main = load_program(chosen)
    if options.dry_run:
        from maypole.models.loadable import check_loadable

        if options.model is not None:
            check_loadable(options.model, adapter=options.adapter, revision=options.revision)
        return DryRun(files=("result.json",) if options.out else ())
    if options.out is None:
        return _run_program(main, options)
    from maypole.models import hub

    inputs = {**hub.commits(options), "file": str(chosen)}
    with Artifact.open(
        options.out, kind="program", config=options, inputs=inputs, seed=options.seed, force=options.force
    ) as artifact:
        if artifact.finished:
            return artifact
        result: Any = plain(_run_program(main, options).to_json())
        write_atomic(artifact.path / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        return artifact.finish({n: value for n, value in result.items() if isinstance(value, int | float)})


def _run_program(main: Any, options: ProgramOptions) -> "ProgramResult":
    from maypole.serve.parrot.backends import Runtime
    from maypole.serve.parrot.client import Session
    from maypole.serve.parrot.pictures import dot
    from maypole.serve.parrot.placement import Capacity
    from maypole.serve.parrot.program import run_program

    settings: Any = {"seed": options.seed, "tokenize": options.tokenize, "cache_scope": options.cache_scope}
    criteria: Any = options.criteria
    if options.server:
        result = run_program(main, Session(url=options.server, **settings), options.arguments, criteria=criteria)
    else:
        capacity = Capacity(options.latency_tokens, options.throughput_tokens)
        with Runtime([*_engines(options), *options.url], capacity=capacity) as runtime:
            result = run_program(main, Session(runtime, **settings), options.arguments, criteria=criteria)
    if options.dot is not None:
        write_atomic(options.dot, dot(result.graph))
    return result


def _engines(options: ProgramOptions) -> list[Any]:
    """Engines that share the weights of one model."""
    if not options.model:
        return []
    from maypole.engine.engine import Engine
    from maypole.engine.opening import open_engine

    if options.engines == 1:
        return [open_engine(options)]
    from maypole.models.loading import load

    fields = ("adapter", "device", "dtype", "quantization", "revision", "trust_remote_code")
    lm = load(options.model, **{name: getattr(options, name) for name in fields})
    return [Engine(lm) for _ in range(options.engines)]
