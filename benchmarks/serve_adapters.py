"""Many adapters on one base: the engine beside itself with one, beside PEFT, and beside a process for each adapter.

Random Llamas of 11M (S) and 110M (L) parameters in fp32, greedy, with random LoRA adapters of rank 8 on q and v unless
a case says otherwise. 32 requests come at once, in turn for each adapter, with prompts of 32 tokens, and are continued
by 32 tokens each; "decoding" begins at one-token prompts and goes on for 64. PEFT's mixed batch is `generate` with
`adapter_names`; one adapter at a time is `set_adapter` and `generate` for the requests of each. A process for each
adapter is an engine with merged weights that has the requests of its adapter alone; their CPU seconds are added up.

Both sides must say the same tokens where they have the same adapters: between 25 adapters and one, in the requests of
the first. Where an adapter is compared with none, it adds zero. All requests on one adapter may not be much faster than
on 25, and rank 64 on every linear layer, whose 25 adapters are wider than the model, must be slower: otherwise it would
not be adapters that are measured.
"""

import copy
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import torch
from peers.random_llamas import SIZES, language_model, random_llama
from side_by_side import Arm, Case, Measured, main

from maypole.engine import NO_ADAPTER, Engine, EngineConfig, Request, Sampling
from maypole.models import LanguageModel

REQUESTS = 32
NARROW = {"rank": 8, "targets": ["q_proj", "v_proj"]}
WIDE = {"rank": 64, "targets": "all-linear"}

Tokens = list[list[int]]


def cases(quick: bool) -> list[Case]:
    """Quick: S only, one round."""
    rounds = 1 if quick else 3

    def case(
        name: str, size: str, ours: Arm, peer: str, theirs: Arm, target: float | None = None, *,
        at_most: float | None = None, **work: Any,
    ) -> Case:
        arm = {"size": size, "prompt": 32, "new": 32, "count": REQUESTS, "zero": False, **NARROW, **work}
        return Case(
            name=f"{size}, {name}", ours={**arm, "side": "ours", **ours}, peers={peer: {**arm, **theirs}},
            unit="tokens", check=None, tolerance=0.0, rounds=rounds, target=target, at_most=at_most,
        )  # fmt: skip

    one, many, some = {"adapters": 1}, {"adapters": 25}, {"adapters": 18}
    beside_one = {"side": "ours", **one}
    decoding = {"prompt": 1, "new": 64}

    def all_of(size: str) -> list[Case]:
        nothing = {"side": "ours", "adapters": 0}
        alone = {"count": 1, "zero": True, **decoding}
        return [
            case("25 adapters", size, many, "1 adapter", beside_one, 0.9),
            case("25 adapters, decoding", size, many, "1 adapter", beside_one, 0.9, **decoding),
            case("18 adapters", size, some, "PEFT, mixed batch", {"side": "mixed", **some}, 1.8),
            case("18 adapters, in turn", size, some, "PEFT, one at a time", {"side": "in turn", **some}, 5.0),
            case("an adapter", size, one, "none", nothing, 0.9, zero=True),
            case("an adapter, 1 request", size, one, "none", nothing, 0.8, **alone),
        ]  # fmt: skip

    found = [
        *all_of("S"),
        case("18 adapters, apart", "S", some, "a process for each", {"side": "processes", **some}, 3.0),
        case("all on 1 adapter", "S", one, "25 adapters", {"side": "ours", **many}, at_most=1.15),
        case("25 adapters of rank 64", "S", many, "1 adapter", beside_one, at_most=0.75, **WIDE),
    ]
    return found if quick else [*found, *all_of("L")]


def measure(arm: Arm) -> Measured:
    """Run one side's work after a short warm-up."""
    prompts = _prompts(arm)
    names = [f"a{i % arm['adapters']}" if arm["adapters"] else NO_ADAPTER for i in range(len(prompts))]
    if arm["side"] == "processes":
        said, wall, cpu = _processes(arm, prompts, names)
    else:
        run = {"ours": _ours, "mixed": _mixed, "in turn": _in_turn}[arm["side"]](arm, names)
        run([[1, 2, 3]] * len(prompts), 2)
        said, wall, cpu = _timed(lambda: run(prompts, arm["new"]))
    compared = {f"{i}.{j}": float(t) for i, row in enumerate(said) if _of_both(arm, i) for j, t in enumerate(row)}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(
        amount=arm["new"] * len(prompts), wall_seconds=wall, cpu_seconds=cpu, peak_rss_bytes=memory, check=compared
    )


def _of_both(arm: Arm, request: int) -> bool:
    """Whether a request has the same adapter whether there are 25 or one."""
    return arm["adapters"] in (0, 18) or arm["zero"] or request % 25 == 0


def _ours(arm: Arm, names: list[str]) -> Callable[[Tokens, int], Tokens]:
    model = random_llama(arm["size"])
    lm = language_model(model)
    return _engine(replace(lm, model=_adapted(model, arm)) if arm["adapters"] else lm, names)


def _engine(lm: LanguageModel, names: list[str]) -> Callable[[Tokens, int], Tokens]:
    engine = Engine(lm, EngineConfig(max_seqs=len(names)))

    def run(prompts: Tokens, new: int) -> Tokens:
        sampling = Sampling(max_tokens=new, temperature=0.0, ignore_eos=True)
        requests = [Request(p, sampling, adapter=name) for p, name in zip(prompts, names)]
        return [o.token_ids for o in engine.generate(requests)]

    return run


def _mixed(arm: Arm, names: list[str]) -> Callable[[Tokens, int], Tokens]:
    model = _adapted(random_llama(arm["size"]), arm)
    return lambda prompts, new: _generate(model, prompts, new, adapter_names=names)


def _in_turn(arm: Arm, names: list[str]) -> Callable[[Tokens, int], Tokens]:
    model = _adapted(random_llama(arm["size"]), arm)

    def run(prompts: Tokens, new: int) -> Tokens:
        said: Tokens = [[] for _ in prompts]
        for name in dict.fromkeys(names):
            mine = [i for i, other in enumerate(names) if other == name]
            model.set_adapter(name)
            for i, tokens in zip(mine, _generate(model, [prompts[i] for i in mine], new)):
                said[i] = tokens
        return said

    return run


def _generate(model: Any, prompts: Tokens, new: int, **options: Any) -> Tokens:
    ids = torch.tensor(prompts)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
        pad_token_id=0, **options,
    )  # fmt: skip
    return out[:, ids.shape[1] :].tolist()


def _processes(arm: Arm, prompts: Tokens, names: list[str]) -> tuple[Tokens, float, float]:
    """One engine after the other, each alone in memory; loading is not counted."""
    said: Tokens = [[] for _ in prompts]
    wall = cpu = 0.0
    for name in dict.fromkeys(names):
        mine = [i for i, other in enumerate(names) if other == name]
        merged = _adapted(random_llama(arm["size"]), arm).merge_and_unload(adapter_names=[name])
        run = _engine(language_model(merged), [NO_ADAPTER] * len(mine))
        run([[1, 2, 3]] * len(mine), 2)
        chosen = [prompts[i] for i in mine]
        found, seconds, used = _timed(lambda run=run, chosen=chosen: run(chosen, arm["new"]))
        wall, cpu = wall + seconds, cpu + used
        for i, tokens in zip(mine, found):
            said[i] = tokens
    return said, wall, cpu


def _adapted(model: Any, arm: Arm) -> Any:
    """`model` with its adapters a0, a1, ...; their weights depend on the name alone."""
    config = peft.LoraConfig(
        r=arm["rank"], lora_alpha=2 * arm["rank"], target_modules=arm["targets"], task_type="CAUSAL_LM"
    )
    made: Any = peft.get_peft_model(model, config, adapter_name="a0")
    for i in range(1, arm["adapters"]):
        made.add_adapter(f"a{i}", copy.deepcopy(config))
    draws = {f"a{i}": torch.Generator().manual_seed(i) for i in range(arm["adapters"])}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.05, generator=draws[name.split(".")[-2]])
                if arm["zero"] and "lora_B" in name:
                    parameter.zero_()
    return made.eval()


def _timed(run: Callable[[], Tokens]) -> tuple[Tokens, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    said = run()
    return said, time.perf_counter() - wall, time.process_time() - cpu


def _prompts(arm: Arm) -> Tokens:
    draw = np.random.default_rng(0)
    return draw.integers(300, SIZES[arm["size"]]["vocab_size"], (arm["count"], arm["prompt"])).tolist()


if __name__ == "__main__":
    main("serve_adapters", cases, measure, "peft", "transformers")
