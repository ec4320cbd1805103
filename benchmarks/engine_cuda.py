"""Inference on a GPU: maypole's engine beside transformers, in tokens per second of the clock.

Random Llamas in bf16, of 110M (L) and 1.1B parameters, greedy. Mixed lengths: prompts of 16 to 256 tokens, new tokens a
quarter of those of chats with a search engine, as in `engine.py`; `generate` takes them in batches padded on the left.
Shared prefix: 32 requests that begin with the same 1,000 tokens. Adapters: 32 requests, each by one of 25 adapters of
rank 16 on attention's layers, or all by one, beside the same engine without any; their second factors are zero, so that
both must say the same. In fp32 both sides must say the same tokens: a case is checked there on four of its requests.
Both sides run in this process, after a few tokens that are not measured; `GB` is the GPU's memory at its peak, weights
included. With equal lengths and one request at a time there is less to batch: there the gain must be smaller.
"""

import functools
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peers.random_llamas import language_model, random_llama
from peers.workloads import Tokens, Work, padded_batches, said, work_of
from safetensors.torch import save_file
from side_by_side import Arm, Case, Measured, main

from maypole.engine import Engine, EngineConfig, Request, Sampling

RANK = 16


def cases(quick: bool) -> list[Case]:
    rounds = 1 if quick else 3

    def case(name: str, size: str, target: float | None = None, peer: str = "generate", **work: Any) -> Case:
        arm = {"size": size, "dtype": "bfloat16", **work}
        ours, theirs = {"side": "ours", **arm}, {"side": peer, **arm}
        check: Arm | None = {"dtype": "float32", "count": 4, "new": 16, "most": 16}
        if peer == "no adapter":
            theirs, check = {"side": "ours", **arm, "adapters": 0}, None
        return Case(
            name=f"{size}, {name}", ours=ours, peers={peer: theirs}, unit="tokens", clock="wall", rounds=rounds,
            check=check, tolerance=0.0, target=target,
        )  # fmt: skip

    mixed: dict[str, Any] = {"work": "mixed", "lengths": "chats"}
    equal: dict[str, Any] = {"work": "equal", "prompt": 64, "new": 64}
    prefix: dict[str, Any] = {"work": "prefix", "prefix": 1000, "tail": 16, "new": 64, "count": 32}
    return [
        case("lengths of chats, 16 at a time", "1B", at_once=16, count=32, **mixed),
        case("lengths of chats, 32 at a time", "1B", at_once=32, count=64, **mixed),
        case("lengths of chats, 16 at a time", "L", at_once=16, count=32, **mixed),
        case("a prefix of 1,000 tokens", "1B", 2.0, at_once=32, **prefix),
        case("32 equal lengths", "1B", at_once=32, count=32, **equal),
        case("1 request at a time", "1B", at_once=1, count=1, **equal),
        case("32 requests, 25 adapters", "1B", 0.9, "no adapter", at_once=32, count=32, adapters=25, **equal),
        case("32 requests, 1 adapter", "1B", 0.9, "no adapter", at_once=32, count=32, adapters=1, **equal),
    ]


def measure(arm: Arm) -> Measured:
    """The work, after a few tokens of it."""
    gc.collect()
    torch.cuda.empty_cache()
    work, first = work_of(arm), work_of({**arm, "new": 4, "most": 4})
    run = _ours(arm) if arm["side"] == "ours" else lambda work: padded_batches(_model(arm), work, arm["at_once"])
    run(first)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begun, cpu = time.perf_counter(), time.process_time()
    tokens = run(work)
    torch.cuda.synchronize()
    return Measured(
        amount=sum(work.lengths),
        wall_seconds=time.perf_counter() - begun,
        cpu_seconds=time.process_time() - cpu,
        peak_rss_bytes=torch.cuda.max_memory_allocated(),
        check=said(tokens),
    )


@functools.lru_cache(maxsize=1)
def _llama(size: str, dtype: str) -> Any:
    with torch.device("cuda"):
        return random_llama(size, dtype)


def _model(arm: Arm) -> Any:
    return _llama(arm["size"], arm["dtype"])


def _ours(arm: Arm) -> Callable[[Work], Tokens]:
    model = _model(arm)
    engine = Engine(language_model(model), EngineConfig(max_seqs=arm["at_once"], **arm.get("settings", {})))
    names: list[str | None] = [f"adapter-{i}" for i in range(arm.get("adapters", 0))]
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(names):
            engine.update(_adapter(model, Path(folder) / str(i), seed=i), name)

    def run(work: Work) -> Tokens:
        engine.close()  # nothing is known from an earlier run
        requests = [
            Request(prompt, Sampling(max_tokens=new, temperature=0.0, ignore_eos=True), adapter=name)
            for prompt, new, name in zip(work.prompts, work.lengths, itertools.cycle(names or [None]))
        ]
        return [output.token_ids for output in engine.generate(requests)]

    return run


def _adapter(model: Any, folder: Path, seed: int) -> Path:
    """Written as peft does, its second factors zero."""
    layers = ("q_proj", "k_proj", "v_proj", "o_proj")
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(layers):
            d_out, d_in = module.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, d_in, generator=draw).to(model.dtype)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(d_out, RANK, dtype=model.dtype)
    peft.LoraConfig(r=RANK, target_modules=list(layers), task_type="CAUSAL_LM").save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("there is no NVIDIA GPU here")
    main("engine_cuda", cases, measure, "transformers", gpu=torch.cuda.get_device_name())
