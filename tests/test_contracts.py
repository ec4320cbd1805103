"""The names that rooms share, each with the signature the others rely on."""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from maypole.claims.verbs import written

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

FUNCTIONS = {
    "core.artifact:Artifact": "(path, manifest)",
    "core.artifact:Artifact.open": "(out, *, kind, config=None, inputs=None, seed=0, force=False)",
    "core.artifact:Artifact.child": "(self, name, *, kind, config=None, inputs=None, seed=0)",
    "core.artifact:Artifact.finish": "(self, metrics=None, **extra)",
    "core.errors:UserError": "(what, where='', expected='')",
    "core.errors:DataError": "(what, *, file=None, row=None, field=None, expected='')",
    "core.errors:ConfigError": "(field, value, accepted)",
    "core.errors:MissingExtra": "(extra, purpose='')",
    "core.errors:UnsupportedModel": "(family, lacks, expected='')",
    "core.errors:RemoteError": "(what, *, retryable)",
    "core.seeds:derive": "(seed, *names)",
    "core.progress:track": "(title, total, unit='steps')",
    "core.metrics:Metrics.log": "(self, step, **numbers)",
    "core.shards:map_shards": "(setup, function, shards, *, out, title, workers=1, ray=None)",
    "core.judge:symmetric": "(preference)",
    "core.judge:as_preference": "(reward)",
    "core.judge:as_reward": "(preference, *, against)",
    "core.judge:matrix": "(preference, prompts, answers, columns=None, *, on_judge_error='stop', rows=None)",
    "core.judge:Reward.__call__": "(self, prompts, completions, **columns)",
    "core.judge:Preference.__call__": "(self, prompts, a, b, **columns)",
    "data:read": "(source, row_type, *, columns=None, mix=None, seed=0)",
    "data:stream": "(source, row_type=None, *, columns=None, mix=None, seed=0)",
    "models:load": "(model_name_or_path, *, adapter=None, task='causal', device=None, dtype='auto', quantization=None, "
    "revision=None, trust_remote_code=False)",
    "models:create": "(config, tokenizer, seed)",
    "models:blocks": "(model)",
    "models:attention_plan": "(plan)",
    "models:token_logprobs": "(hidden, weight, targets, *, bias=None, softcap=None, scale=1.0, chunk=None)",
    "models:LanguageModel.with_adapter": "(self, name)",
    "engine:Engine": "(lm, config=None)",
    "engine:Engine.load": "(model_name_or_path, *, config=None, adapters=None, **options)",
    "engine:Engine.connect": "(url, **options)",
    "engine:Engine.generate": "(self, requests)",
    "engine:Engine.stream": "(self, request)",
    "engine:Engine.score": "(self, requests)",
    "engine:Engine.embed": "(self, texts, *, pooling='last', layer=-1, normalize=True, adapter=None, truncate=False)",
    "engine:Engine.classify": "(self, requests)",
    "engine:Engine.update": "(self, source, adapter=None, *, mode='finish')",
    "train:fit": "(lm, rows, objective, config, *, out, seed=0, reference=None, eval_rows=None, callbacks=())",
    "train:Objective.segments": "(self, row, tokenizer)",
    "train:Objective.__call__": "(self, batch)",
    "train:Rounds.__call__": "(self, round, lm)",
    "train.losses:dpo": "(chosen, rejected, ref_chosen, ref_rejected, *, beta, label_smoothing=0.0)",
    "align.method:Method.rows": "(self, samples)",
    "train:TokenBatch.sums": "(self, name, *, reference=False)",
    "evaluate:windows": "(ids, max_length, *, overlap=0, bos=None)",
    "evaluate:perplexity": "(model, documents, *, max_length=None, overlap=0, adapter=None, seed=0, step=None)",
    "evaluate:win_rate": "(a, b, judge, prompts, columns=None, *, both_orders=True, on_judge_error='stop', seed=0)",
    "evaluate:kl": "(policy, reference, prompts, *, max_tokens=128, samples=1, adapter=None, seed=0)",
    "evaluate:pair_accuracy": "(rows, judge, *, on_judge_error='stop', seed=0)",
    "evaluate.judges:load": "(spec, *, engine=None)",
}

FIELDS = {
    "core.config:ModelOptions": "model adapter revision device dtype quantization trust_remote_code",
    "core.config:RunOptions": "out seed threads force dry_run",
    "models:LanguageModel": "model tokenizer name fingerprint",
    "models:PeftMethod": "name config_class register apply",
    "models:PeftOptions": "type r lora_alpha lora_dropout target_modules options",
    "models:Point": "layer site",
    "engine:Output": "text token_ids logprobs finish_reason usage version request",
    "engine:ScoreRequest": "prompt continuations adapter",
    "engine:Scored": "logprobs sum is_greedy",
    "engine:EngineConfig": "max_seqs max_batch_tokens kv_bytes repack_bytes",
    "train:Segment": "ids weights name children",
    "train:Loss": "sum metrics",
    "train:TokenBatch": "logps weights segment names row reference hidden scores columns",
    "train:TrainConfig": "learning_rate num_train_epochs max_steps lr_scheduler_type warmup_ratio weight_decay "
    "max_grad_norm examples_per_step tokens_per_batch max_length precision gradient_checkpointing peft reference_logps "
    "optimizer save_steps eval_steps logging_steps report_to",
    "claims.effects:Effect": "name metric ours baseline threshold rule control",
    "claims.effects:Part": "run timed",
    "claims.runner:ClaimResult": "id statement effects seeds seconds figures versions holds",
}

ROWS = {
    "TEXT": "text",
    "CHAT": "messages",
    "COMPLETION": "prompt completion",
    "PROMPT": "prompt",
    "PAIR": "prompt chosen rejected",
    "UNPAIRED": "prompt completion label",
    "SAMPLES": "prompt completions",
    "QA": "question answers",
    "TRIPLE": "subject relation object",
    "IMAGE_TEXT": "image text",
    "IMAGE_CHAT": "image conversations",
}

ATTRIBUTES = {
    "train:Objective": "rows needs unit linear segments",
    "train:Rounds": "count",
    "align.method:Method": "objective draws judge rows",
    "engine:Engine": "capabilities",
    "models:LanguageModel": "base_version",
}
"""What protocols ask for, and properties."""


def named(path: str):
    module, _, name = path.partition(":")
    found = importlib.import_module(f"maypole.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    return found


def bare(signature: inspect.Signature) -> str:
    """The signature without annotations."""
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("path", FUNCTIONS)
def test_a_shared_function_has_its_signature(path):
    found = bare(inspect.signature(named(path)))
    if inspect.ismethod(named(path)):  # a classmethod's signature comes without cls
        assert found == FUNCTIONS[path]
    else:
        assert re.sub(r"=<[^>]*>", "", found) == FUNCTIONS[path]


@pytest.mark.parametrize("path", FIELDS)
def test_a_shared_dataclass_has_its_fields(path):
    fields = [f.name for f in dataclasses.fields(named(path))]
    assert [name for name in FIELDS[path].split() if name not in fields] == []


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_a_protocol_asks_for_its_attributes(path):
    kind = named(path)
    known = {*vars(kind), *inspect.get_annotations(kind)}
    assert [name for name in ATTRIBUTES[path].split() if name not in known] == []


ERRORS = ["UnsupportedCapability", "ArtifactError", "JudgeError", "DataError", "ConfigError", "MissingExtra"]


@pytest.mark.parametrize("name", [*ERRORS, "UnsupportedModel"])
def test_what_a_user_can_mend_is_a_user_error_and_a_remote_fault_is_not(name):
    assert issubclass(named(f"core.errors:{name}"), named("core.errors:UserError"))
    assert not issubclass(named("core.errors:RemoteError"), named("core.errors:UserError"))


def test_training_has_no_seed_of_its_own():
    assert "seed" not in [f.name for f in dataclasses.fields(named("train:TrainConfig"))]


def test_every_claim_has_its_parts_and_they_run_one_seed():
    for id in written():
        parts = named(f"claims.{id.replace('-', '_')}:PARTS")
        assert any(parts.values()), id
        for part in filter(None, parts.values()):  # None: announced, not there yet
            asked = [p.name for p in inspect.signature(part.run).parameters.values() if p.default is p.empty]
            assert asked == ["seed", "workdir"], id


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_a_stored_benchmark_holds_the_fields_of_all(file):
    found = json.loads(file.read_text())
    assert {"name", "cases", "machine", "versions"} <= set(found)
    for case in found["cases"]:
        assert {"case", "ours", "peer", "peer_name", "unit", "ratio", "target", "met", "equal"} <= set(case), case


@pytest.mark.parametrize("name", ROWS)
def test_a_row_type_has_its_columns(name):
    assert set(ROWS[name].split()) <= set(named(f"data:{name}").columns)
