"""The commands that look at, merge and export models. Loads torch only when one of them runs."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from maypole.core.artifact import Artifact, command_line
from maypole.core.atomic import write_atomic
from maypole.core.config import DryRun, ModelOptions, RunOptions, check, pass_on, setting
from maypole.core.errors import ConfigError, UserError
from maypole.core.identity import plain

if TYPE_CHECKING:
    import torch

    from maypole.models.description import AdapterFacts, ModelFacts
    from maypole.models.family_tree import Step
    from maypole.models.language_model import LanguageModel

FORMATS = ("safetensors", "gguf", "gguf-q8_0")


@dataclass(frozen=True, kw_only=True)
class InfoOptions(ModelOptions, RunOptions):
    """Which directory is looked at."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions(ModelOptions, RunOptions):
    """Which adapter goes into which model."""

    model: str = setting(input=True, help="an adapter's own directory, or its base with --adapter")
    out: Path = setting(key=False, help="directory of the result")
    max_shard_size: str = setting("5GB", help="most bytes a file of weights may have")

    def __post_init__(self) -> None:
        check_size(self.max_shard_size)
        pass_on(MergeOptions, self)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions, RunOptions):
    """What is written where."""

    model: str = setting(input=True, help="model or adapter directory, or hub id")
    out: Path = setting(key=False, help="directory that is written; for gguf a file")
    to: str = setting("safetensors", help="format: safetensors, gguf, or gguf-q8_0 (8 bits a weight)")
    max_shard_size: str = setting("5GB", help="most bytes a file of weights may have")
    push_to_hub: str | None = setting(None, key=False, help="then put it into this repository of the hub: owner/name")
    public: bool = setting(False, key=False, help="a repository that is made for it can be seen by all")

    def __post_init__(self) -> None:
        check("to", self.to, FORMATS)
        if self.public and self.push_to_hub is None:
            raise ConfigError("public", True, "together with --push-to-hub owner/name")
        check_size(self.max_shard_size)
        pass_on(ExportOptions, self)


@dataclass(frozen=True)
class ModelInfo:
    """A directory's facts and its ancestors, oldest first; `model` is None where an adapter's base is not here."""

    path: str
    model: "ModelFacts | None"
    adapter: "AdapterFacts | None"
    family: "tuple[Step, ...]"
    note: str = ""

    def __rich__(self) -> object:
        from maypole.models.info_table import table

        return table(self)


@dataclass(frozen=True)
class Exported:
    """What was written: its files, their bytes in all, and its address on the hub where it was put there."""

    path: str
    files: tuple[str, ...]
    bytes: int
    url: str | None = None


def info(
    directory: Annotated[str | None, Parameter(name="DIR", help="checkpoint or adapter directory")] = None,
    /,
    *,
    config: InfoOptions | None = None,
) -> ModelInfo | DryRun | Artifact:
    """Show what a model or adapter is and where it comes from.

    Reads configs, headers and manifests; no weights are loaded. With --out the facts are kept as a result.

        maypole models info runs/adapted
        maypole models info --model runs/adapted --json
    """
    from maypole.models.description import base_directory, describe_adapter, describe_model
    from maypole.models.family_tree import family_tree

    options = config or InfoOptions()
    given = options.model or directory
    if given is None or (options.model and directory):
        raise UserError("needs one directory", "DIR", "maypole models info DIR")
    path = _directory(given)
    if options.dry_run:
        return DryRun(files=("info.json",) if options.out else ())
    own = path if (path / "adapter_config.json").is_file() else None
    over = _directory(options.adapter) if options.adapter else own
    base = path if own is None else base_directory(path)
    facts = ModelInfo(
        path=given,
        model=describe_model(base, trust_remote_code=options.trust_remote_code) if base else None,
        adapter=describe_adapter(over) if over else None,
        family=family_tree(over or path),
        note="" if base else "its base model is not on this disk",
    )
    return facts if options.out is None else _kept(facts, options, given)


def merge(config: MergeOptions) -> Artifact | DryRun:
    """Merge an adapter into its base model.

    Each layer is added up in float32 and rounded once. The model is the adapter's directory alone, or its base with
    the adapter named beside it.

        maypole models merge --model base --adapter adapted --out merged
        maypole models merge --model adapted --out merged --dtype bfloat16
    """
    from maypole.models.hub import commits, local
    from maypole.models.loadable import check_loadable

    itself = (local(config.model, revision=config.revision) / "adapter_config.json").is_file()
    if not itself and config.adapter is None:
        raise UserError("has no adapter to merge", config.model, "--adapter DIR, or an adapter's own directory")
    if config.dry_run:
        return DryRun(
            peak_memory_bytes=check_loadable(config.model, adapter=config.adapter, revision=config.revision),
            files=("config.json", "model.safetensors", "tokenizer.json", "README.md"),
        )
    from maypole.models.adapters import merged
    from maypole.models.saving import save

    with Artifact.open(
        config.out, kind="merge", config=config, inputs=commits(config), seed=config.seed, force=config.force
    ) as artifact:
        if artifact.finished:
            return artifact
        lm = merged(_load(config))
        save(lm, artifact.path, dtype=_torch_dtype(config.dtype), max_shard_size=config.max_shard_size)
        base = lm.name.removesuffix(" (merged)")
        (artifact.path / "README.md").write_text(_card(artifact, base))
        return artifact.finish({"parameters": sum(p.numel() for p in lm.model.parameters())})


def export(config: ExportOptions) -> Exported | DryRun:
    """Write a model or adapter as a clean Hugging Face directory, or as a GGUF file for llama.cpp.

    The directory holds what save_pretrained writes and nothing of maypole's own; a GGUF file holds the tokenizer too,
    and an adapter merged into its base. Either is whole or absent, and --push-to-hub puts it on the
    hub when it is whole.

        maypole models export --model runs/adapted --out for-the-hub
        maypole models export --model merged --out small --dtype bfloat16 --max-shard-size 2GB
        maypole models export --model runs/adapted --to gguf --out adapted.gguf
    """
    if config.adapter is not None:
        raise UserError("exports one directory", "--adapter", "--model ADAPTER; or first: maypole models merge")
    from maypole.models.export import check_target
    from maypole.models.gguf import check_file

    single = config.to != "safetensors"
    (check_file if single else check_target)(config.out, config.force)
    if config.push_to_hub is not None:
        _check_push(config, config.push_to_hub)
    if config.dry_run:
        from maypole.models.loadable import check_loadable

        weights = check_loadable(config.model, revision=config.revision)
        return DryRun(peak_memory_bytes=weights, files=(str(config.out),))
    (_to_gguf if single else _to_safetensors)(config)
    files = [config.out] if single else sorted(file for file in config.out.iterdir() if file.is_file())
    written = Exported(str(config.out), tuple(file.name for file in files), sum(f.stat().st_size for f in files))
    return written if config.push_to_hub is None else replace(written, url=_push(config, config.push_to_hub, files))


def _check_push(config: ExportOptions, repo: str) -> None:
    """UserError where nothing could be pushed, or nothing that is of use elsewhere: before anything is written."""
    from maypole.models.adapters import adapter_config
    from maypole.models.hub import check_push

    check_push(repo)
    path = Path(config.model)
    if config.to == "safetensors" and (path / "adapter_config.json").is_file():
        base = str(adapter_config(path).get("base_model_name_or_path") or "")
        if Path(base).is_absolute():
            what = f"its base {base} is on this disk only, where nobody else finds it"
            raise UserError(what, config.model, "first: maypole models merge, or an adapter whose base is a hub id")


def _push(config: ExportOptions, repo: str, files: list[Path]) -> str:
    from maypole.models.hub import push

    card = _readme(config)
    cards = {} if card is None else {"README.md": card}
    return push({**cards, **{file.name: file for file in files}}, repo, public=config.public)


def _readme(config: ExportOptions) -> Path | None:
    card = Path(config.model) / "README.md"
    return card if card.is_file() else None


def _to_safetensors(config: ExportOptions) -> None:
    from maypole.models.export import export_safetensors

    export_safetensors(
        _load(config),
        config.out,
        dtype=_torch_dtype(config.dtype),
        max_shard_size=config.max_shard_size,
        readme=_readme(config),
        force=config.force,
    )


def _to_gguf(config: ExportOptions) -> None:
    from maypole.models.adapters import merged
    from maypole.models.gguf import GgufType, export_gguf

    lm = _load(replace(config, dtype="auto"))  # weights are rounded once, where they are written
    lm = merged(lm) if lm.adapters else lm
    stored = str(_torch_dtype(config.dtype) or lm.dtype).removeprefix("torch.")
    names: dict[str, GgufType] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    dtype: GgufType = "q8_0" if config.to == "gguf-q8_0" else names.get(stored, "f32")
    export_gguf(lm, config.out, dtype=dtype, force=config.force)


def check_size(text: str) -> None:
    """ConfigError unless `text` is a size such as 5GB or 200MB."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in ("KB", "MB", "GB") or not number.isdigit() or int(number) < 1:
        raise ConfigError("max_shard_size", text, "a whole number and KB, MB or GB: 5GB")


def _directory(name: str) -> Path:
    path = Path(name)
    if not path.is_dir():
        raise UserError("is a file" if path.exists() else "no such directory", name, "a model or adapter directory")
    if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise UserError("neither config.json nor adapter_config.json is there", name, "a model or adapter directory")
    return path


def _load(config: ModelOptions) -> "LanguageModel":
    """On the CPU unless told otherwise: nothing is computed but a sum per layer."""
    from maypole.models.loading import load

    assert config.model is not None
    return load(
        config.model,
        adapter=config.adapter,
        device=config.device or "cpu",
        dtype=config.dtype,
        quantization=config.quantization,  # pyright: ignore[reportArgumentType]
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )


def _torch_dtype(name: str) -> "torch.dtype | None":
    import torch

    return None if name == "auto" else getattr(torch, name)


def _kept(facts: ModelInfo, options: InfoOptions, given: str) -> Artifact:
    assert options.out is not None
    inputs: dict[str, object] = {"model": Path(given)}
    settings, force = {"adapter": options.adapter}, options.force
    with Artifact.open(options.out, kind="model-info", config=settings, inputs=inputs, force=force) as artifact:
        if not artifact.finished:
            text = json.dumps(plain(facts), indent=2, ensure_ascii=False)
            write_atomic(artifact.path / "info.json", text + "\n")
            artifact.finish({"parameters": facts.model.parameters} if facts.model else {})
        return artifact


def _card(artifact: Artifact, base: str) -> str:
    """README.md as the hub reads it."""
    shown = Path(base).name if Path(base).is_dir() else base
    head = ["---", f"base_model: {shown}", "library_name: transformers", "tags:", "- maypole", "---", ""]
    body = [f"# {artifact.out.name}", "", f"`{shown}` with an adapter merged into its weights by maypole.", ""]
    return "\n".join([*head, *body, "Made by:", "", "```", command_line(artifact.manifest), "```", ""])
