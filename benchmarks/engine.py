"""Inference: maypole's engine beside transformers, llama.cpp and its server, in tokens per CPU second.

Random Llamas of 11M (S) and 110M (L) parameters, greedy, fp32 unless a case says bf16. Mixed lengths: prompts of 16 to
256 tokens, 16 at a time, new tokens a quarter of those of 64 chats with a search engine (the list in the artifact of
Parrot, arXiv 2405.19888, figure 14) or evenly between 46 and 200; `generate` takes them in batches of 16, padded on the
left. Shared prefix: 32 requests that begin with the same 1,000 tokens. Scoring: four choices for each of 20 questions
that share 300 tokens of examples, on the other side in a padded batch a question. Decoding: from one-token prompts, so
that there is nothing else. Server: 32 clients that ask at once, in CPU seconds of the server.

In fp32 both sides must say the same tokens. bf16 rounds otherwise on either side: there a case is checked in fp32,
keys and values included and without llama.cpp's flash attention, which rounds to fp16 even then, and `agree` is the
share of equal tokens in the bf16 runs. With a prefix shorter than what follows it, with equal lengths, and with one or
two requests at a time there is less to share and to batch: there the gain must be smaller.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peers.random_llamas import language_model, random_llama
from peers.served import completions, cpu_seconds, served
from peers.workloads import Tokens, Work, ids_of, padded_batches, said, work_of
from side_by_side import Arm, Case, Measured, main
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from maypole.engine import Engine, EngineConfig, Request, Sampling, ScoreRequest

SEQUENCES = 16
"""Requests that run at once where lengths are mixed."""
LLAMA_CPP = {
    f"llama.cpp, {'one buffer' if unified else 'a buffer each'}{', flash' if flash else ''}": {
        "side": "llama.cpp", "unified": unified, "flash": flash
    }
    for unified in (True, False)
    for flash in (True, False)
}  # fmt: skip
"""Its settings that a user would choose from; the fastest is compared."""


def cases(quick: bool) -> list[Case]:
    """Quick: every kind of work once, on S where there is a choice, one round."""
    rounds = 1 if quick else 3

    def case(
        name: str, peer: str, target: float | None = None, size: str = "S", fast: Any = "auto", **work: Any
    ) -> Case:
        arm = {"size": size, "dtype": "float32", **work}
        return Case(
            name=f"{size}, {name}", ours={"side": "ours", "fast_path": fast, **arm},
            peers={peer: {"side": peer, **arm}}, unit="tokens", check=None, tolerance=1e-5, rounds=rounds,
            target=target,
        )  # fmt: skip

    def batching(size: str) -> Case:
        found = case("32 equal lengths", "generate_batch", 2.5, size, count=32, **equal)
        # By default its cache is as large as memory allows, and its attention masks are as wide as its cache.
        fitted = {"generate_batch, a cache that fits": {**found.peers["generate_batch"], "fitted": True}}
        # In one of L's 2,048 tokens two are equally likely to the last bit; among the first 16 requests' there is none.
        return replace(found, peers={**found.peers, **fitted}, check={"count": 16} if size == "L" else None)

    def in_bf16(name: str, size: str, peers: dict[str, Any], target: float, check: dict[str, Any], **work: Any) -> Case:
        arm = {"size": size, "dtype": "bfloat16", **work}
        return Case(
            name=f"{size}, bf16, {name}", ours={"side": "ours", "fast_path": "auto", **arm},
            peers={peer: {**arm, **settings} for peer, settings in peers.items()}, unit="tokens",
            check={"dtype": "float32", "flash": False, **check}, tolerance=0.0, rounds=rounds, target=target,
            needs=("llama_cpp", "gguf"),
        )  # fmt: skip

    def mixed(size: str, fast: bool, lengths: str = "chats") -> Case:
        name = f"lengths of {lengths}" if lengths == "chats" else f"{lengths} lengths"
        path = "fast path" if fast else "universal path"
        work = {"work": "mixed", "count": 32 if quick or size == "L" else 64, "lengths": lengths}
        return case(f"{name}, {path}", "generate", 3.0 if fast else 2.5, size, fast, **work)

    def decoding(count: int) -> Case:
        work = {"work": "equal", "prompt": 1, "new": 128, "count": count}
        return in_bf16(f"decoding {count} at once", "L", LLAMA_CPP, 0.7, {"count": 4, "new": 64}, **work)

    def sharing(size: str) -> Case:
        work = {"work": "prefix", "prefix": 1000, "tail": 16, "new": 32, "count": 32}
        return in_bf16("a prefix of 1,000 tokens", size, LLAMA_CPP, 1.2, {"count": 4}, **work)

    def serving(size: str, target: float) -> Case:
        work = {"work": "served", "prompt": 64, "new": 64, "count": 32}
        peers = {"llama_cpp.server": {"side": "llama_cpp.server"}}
        return in_bf16("32 clients", size, peers, target, {"count": 4}, **work)

    equal = {"work": "equal", "prompt": 64, "new": 64}
    questions = 10 if quick else 20
    prefix = {"work": "prefix", "new": 32, "count": 32}
    found = [
        mixed("S", fast=False),
        mixed("S", fast=True),
        case("a prefix of 1,000 tokens", "generate", 15.0, prefix=1000, tail=16, **prefix),
        case("a prefix of 16 tokens", "generate", prefix=16, tail=128, **prefix),
        case("four choices, shared context", "scoring loop", 10.0, work="score", context=300, count=questions),
        batching("S"),
        case("1 request at a time", "generate", count=1, **equal),
        case("2 requests at a time", "generate", count=2, **equal),
        decoding(32),
        sharing("S"),
        serving("S", 1.8),
    ]
    if quick:
        return found
    return [
        *found,
        mixed("S", fast=False, lengths="even"),
        mixed("S", fast=True, lengths="even"),
        mixed("L", fast=False),
        mixed("L", fast=True),
        case("16 equal lengths", "generate", count=16, **equal),
        case("16 equal lengths", "generate", size="L", count=16, **equal),
        batching("L"),
        decoding(8),
        decoding(16),
        sharing("L"),
        serving("L", 3.0),
    ]


def measure(arm: Arm) -> Measured:
    """Run one side's work after a short warm-up; tokens are those generated, or for scoring those read."""
    if arm["work"] == "served":
        return _served(arm)
    if arm["work"] == "score":
        run, amount = _scoring(arm)
    else:
        work = work_of(arm)
        run, amount = _generating(arm, work), sum(work.lengths)
    cpu, wall = time.process_time(), time.perf_counter()
    check = run()
    return _measured(amount, time.perf_counter() - wall, time.process_time() - cpu, check)


def _generating(arm: Arm, work: Work) -> Callable[[], dict[str, float]]:
    running = SEQUENCES if arm["work"] == "mixed" else arm["count"]
    model: Any = random_llama(arm["size"], arm["dtype"])
    if arm["side"] == "llama.cpp":
        peer = _llama_cpp(arm, model, work)
        return lambda: said(peer(work.prompts, work.lengths[0], work.shared))
    if arm["side"] == "ours":
        engine = Engine(language_model(model), EngineConfig(max_seqs=running, fast_path=arm["fast_path"]))
        engine.generate([_request([1, 2, 3], 2)])
        return lambda: said([o.token_ids for o in engine.generate([*map(_request, work.prompts, work.lengths)])])
    if arm["side"] == "generate_batch":
        return lambda: said(_continuous(model, work, arm.get("fitted", False)))
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)
    return lambda: said(padded_batches(model, work, running))


def _continuous(model: Any, work: Work, fitted: bool) -> Tokens:
    """transformers' own continuous batching, with blocks for all requests where it is `fitted`."""
    longest = max(len(prompt) + new for prompt, new in zip(work.prompts, work.lengths))
    blocks = len(work.prompts) * -(-longest // 128) + 8
    cache: dict[str, Any] = {"page_size": 128, "num_blocks": blocks, "max_batch_tokens": 512}
    config = ContinuousBatchingConfig(use_cuda_graph=False, use_async_batching=False, **(cache if fitted else {}))
    settings = transformers.GenerationConfig(
        max_new_tokens=work.lengths[0], do_sample=False, eos_token_id=None, pad_token_id=0, use_cuda_graph=False
    )
    found = model.generate_batch(
        inputs=work.prompts, generation_config=settings, continuous_batching_config=config, progress_bar=False
    )
    return [list(o.generated_tokens) for _, o in sorted(found.items(), key=lambda item: int(item[0].split("_")[-1]))]


def _llama_cpp(arm: Arm, model: Any, work: Work) -> Callable[[Tokens, int, int], Tokens]:
    from peers.llama_cpp_batches import LlamaCpp

    with tempfile.TemporaryDirectory() as folder:
        file = _gguf(model, Path(folder), arm["dtype"])
        del model
        length = max(map(len, work.prompts)) + work.lengths[0]
        peer = LlamaCpp(
            file,
            sequences=len(work.prompts),
            length=length,
            unified=arm["unified"],
            flash=arm["flash"],
            exact=arm["dtype"] == "float32",
        )
        peer.generate([[1, 2, 3]], 2)
    return lambda prompts, new, shared: peer.generate(prompts, new, shared=shared)


def _gguf(model: Any, folder: Path, dtype: str) -> Path:
    from maypole.models.gguf import export_gguf

    file = folder / "model.gguf"
    export_gguf(language_model(model), file, dtype="f32" if dtype == "float32" else "bf16")
    return file


def _served(arm: Arm) -> Measured:
    """Text in and out, since llama.cpp's server takes no ids."""
    from maypole.models.saving import save

    lm = language_model(random_llama(arm["size"], arm["dtype"]))
    prompts = [str(lm.tokenizer.decode(ids)) for ids in work_of({**arm, "work": "equal"}).prompts]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arm["side"] == "ours":
            save(lm, folder / "model")
            command = [sys.executable, "-c", "from maypole.cli.main import main; main()", "serve"]
            command += [str(folder / "model"), "--dtype", arm["dtype"], "--threads", "1"]
            command += ["--max-seqs", str(arm["count"]), "--port", "{port}"]
        else:
            file = _gguf(lm.model, folder, arm["dtype"])
            command = [sys.executable, "-m", "llama_cpp.server", "--model", str(file), "--port", "{port}"]
            command += ["--n_threads", "1", "--n_threads_batch", "1", "--logits_all", "false"]
            command += (
                ["--type_k", "0", "--type_v", "0"] if arm["dtype"] == "float32" else []
            )  # as exact as the weights
        del lm
        with served(command, folder / "log") as (url, process):
            completions(url, "model", prompts[:1], 2)
            cpu, wall = cpu_seconds(process), time.perf_counter()
            answers = completions(url, "model", prompts, arm["new"])
            seconds = time.perf_counter() - wall, cpu_seconds(process) - cpu
    amount = sum(answer["usage"]["completion_tokens"] for answer in answers)
    texts = [answer["choices"][0]["text"].encode() for answer in answers]
    return _measured(amount, *seconds, said([list(text) for text in texts]))


def _scoring(arm: Arm) -> tuple[Callable[[], dict[str, float]], int]:
    model = random_llama(arm["size"])
    draw = np.random.default_rng(0)
    size = model.config.vocab_size
    shared = ids_of(draw, arm["context"], size)
    items = []
    for _ in range(arm["count"]):
        context = shared + ids_of(draw, int(draw.integers(10, 31)), size)
        items.append((context, [ids_of(draw, int(draw.integers(4, 20)), size) for _ in range(4)]))
    amount = sum(len(c) + len(e) for c, ends in items for e in ends)
    if arm["side"] == "ours":
        engine = Engine(language_model(model))

        def ours() -> dict[str, float]:
            scored = engine.score([ScoreRequest(c, ends) for c, ends in items])
            return {f"{i}.{j}": s.sum for i, row in enumerate(scored) for j, s in enumerate(row)}

        return ours, amount

    @torch.no_grad()
    def peer() -> dict[str, float]:
        sums = {}
        for i, (context, ends) in enumerate(items):
            longest = max(map(len, ends))
            ids = torch.tensor([context + e + [0] * (longest - len(e)) for e in ends])
            logps = model(ids).logits[:, len(context) - 1 : -1].float().log_softmax(-1)
            picked = logps.gather(2, ids[:, len(context) :, None])[..., 0]
            sums |= {f"{i}.{j}": float(picked[j, : len(e)].sum()) for j, e in enumerate(ends)}
        return sums

    return peer, amount


def _request(prompt: list[int], new: int) -> Request:
    return Request(prompt, Sampling(max_tokens=new, temperature=0.0, ignore_eos=True))


def _measured(amount: float, wall: float, cpu: float, check: dict[str, float]) -> Measured:
    return Measured(
        amount=amount,
        wall_seconds=wall,
        cpu_seconds=cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        check=check,
    )


if __name__ == "__main__":
    main("engine", cases, measure, "transformers", "llama-cpp-python")
