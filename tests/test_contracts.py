"""The names that rooms share, each with the signature the others rely on."""

import dataclasses
import importlib
import inspect
import re

import pytest

FUNCTIONS = {
    "core.artifact:Artifact": "(path, manifest)",
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
    "models:token_logprobs": "(hidden, weight, targets, *, bias=None, softcap=None, scale=1.0, chunk=256)",
    "models:LanguageModel.with_adapter": "(self, name)",
    "engine:Engine": "(lm, config=None)",
    "engine:Engine.load": "(model_name_or_path, *, config=None, adapters=None, **options)",
    "engine:Engine.connect": "(url, **options)",
    "engine:Engine.generate": "(self, requests)",
    "engine:Engine.stream": "(self, request)",
    "engine:Engine.score": "(self, requests)",
    "engine:Engine.classify": "(self, requests)",
    "engine:Engine.update": "(self, source, adapter=None, *, mode='finish')",
    "train:fit": "(lm, rows, objective, config, *, out, seed=0, reference=None, eval_rows=None, callbacks=())",
    "train:Objective.segments": "(self, row, tokenizer)",
    "train:Objective.__call__": "(self, batch)",
    "train:Rounds.__call__": "(self, round, lm)",
    "train:TokenBatch.sums": "(self, name, *, reference=False)",
    "evaluate:windows": "(ids, max_length, *, overlap=0, bos=None)",
    "evaluate.judges:load": "(spec, *, engine=None)",
}

FIELDS = {
    "core.config:ModelOptions": "model adapter revision device dtype quantization trust_remote_code",
    "core.config:RunOptions": "out seed threads force dry_run",
    "models:PeftMethod": "name config_class register apply",
    "models:PeftOptions": "type r lora_alpha lora_dropout target_modules options",
    "models:Point": "layer site",
    "engine:Output": "text token_ids logprobs finish_reason usage version request",
    "engine:ScoreRequest": "prompt continuations adapter",
    "engine:Scored": "logprobs sum is_greedy",
    "engine:EngineConfig": "max_seqs max_batch_tokens kv_bytes",
    "train:Segment": "ids weights name children",
    "train:Loss": "sum metrics",
    "train:TokenBatch": "logps weights segment names row reference hidden scores columns",
    "train:TrainConfig": "learning_rate num_train_epochs max_steps lr_scheduler_type warmup_ratio weight_decay "
    "max_grad_norm examples_per_step tokens_per_batch max_length precision gradient_checkpointing peft reference_logps "
    "optimizer save_steps eval_steps logging_steps report_to",
    "claims.effects:Effect": "name metric ours baseline threshold rule control",
    "claims.effects:Part": "run timed",
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


@pytest.mark.parametrize("name", ROWS)
def test_a_row_type_has_its_columns(name):
    assert set(ROWS[name].split()) <= set(named(f"data:{name}").columns)
