"""Inference: maypole's engine beside transformers' `generate` and `generate_batch`, in tokens per second.

Random Llamas of 11M (S) and 110M (L) parameters, fp32, greedy. Mixed lengths: 64 requests, prompts of 16 to 256 tokens,
46 to 200 new ones, 16 at a time; `generate` takes them in batches of 16, padded on the left. Shared prefix: 32 requests
that begin with the same 1,000 tokens. Scoring: four choices for each of 20 questions that share 300 tokens of examples,
on the other side in a padded batch a question. With a prefix shorter than what follows it, and with one or two requests
at a time, there is less to share and to batch: there the gain must be smaller.
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import Arm, Case, Measured, main
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from maypole.engine import Engine, EngineConfig, Request, Sampling, ScoreRequest
from maypole.models import LanguageModel

SIZES = {
    "S": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 5,
          "num_key_value_heads": 5, "vocab_size": 4096},
    "L": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
          "num_key_value_heads": 12, "vocab_size": 32000},
}  # fmt: skip
SEQUENCES = 16
"""Requests that run at once where lengths are mixed."""

Work = tuple[list[list[int]], list[int]]
"""Prompts, and how many tokens each is continued by."""


def cases(quick: bool) -> list[Case]:
    """Every kind of work on S; the mixed one on L too."""

    def case(name: str, peer: str, target: float | None = None, size: str = "S", **work: Any) -> Case:
        arm = {"size": size, **work}
        return Case(
            name=f"{size}, {name}",
            ours={"side": "ours", **arm},
            peers={peer: {"side": peer, **arm}},
            unit="tokens",
            check={},
            tolerance=1e-5,
            rounds=1 if quick else 3,
            target=target,
        )

    found = [
        case("mixed lengths", "generate", 2.5, work="mixed", count=32 if quick else 64),
        case("a prefix of 1,000 tokens", "generate", 15.0, work="prefix", prefix=1000, tail=16, new=32, count=32),
        case(
            "four choices, shared context", "scoring loop", 10.0, work="score", context=300, count=10 if quick else 20
        ),
    ]
    if quick:
        return found
    return [
        *found,
        case("mixed lengths", "generate", 2.5, size="L", work="mixed", count=32),
        case("32 equal lengths", "generate_batch", 2.5, work="equal", prompt=64, new=64, count=32),
        case("a prefix of 16 tokens", "generate", work="prefix", prefix=16, tail=128, new=32, count=32),
        case("1 request at a time", "generate", work="equal", prompt=64, new=64, count=1),
        case("2 requests at a time", "generate", work="equal", prompt=64, new=64, count=2),
    ]


def measure(arm: Arm) -> Measured:
    """Run one side's work after a short warm-up; tokens are those generated, or for scoring those read."""
    model = _model(arm["size"])
    if arm["work"] == "score":
        run, amount = _scoring(arm, model)
    else:
        run, amount = _generating(arm, model)
    cpu, wall = time.process_time(), time.perf_counter()
    check = run()
    return Measured(
        amount=amount,
        wall_seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        check=check,
    )


def _generating(arm: Arm, model: LlamaForCausalLM) -> tuple[Callable[[], dict[str, float]], int]:
    prompts, lengths = _work(arm, model.config.vocab_size)
    running = SEQUENCES if arm["work"] == "mixed" else arm["count"]
    if arm["side"] == "ours":
        engine = Engine(_language_model(model), EngineConfig(max_seqs=running))
        engine.generate([_request([1, 2, 3], 2)])
        return lambda: _digest([o.token_ids for o in engine.generate([*map(_request, prompts, lengths)])]), sum(lengths)
    if arm["side"] == "generate_batch":
        return lambda: _digest(_continuous(model, prompts, lengths)), sum(lengths)
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)
    return lambda: _digest(_batches(model, prompts, lengths, running)), sum(lengths)


def _batches(model: Any, prompts: list[list[int]], lengths: list[int], size: int) -> list[list[int]]:
    """Batches in order of arrival, padded on the left; each runs until its longest is done."""
    found: list[list[int]] = []
    for a in range(0, len(prompts), size):
        batch, wanted = prompts[a : a + size], lengths[a : a + size]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        new = max(wanted)
        out = model.generate(
            ids, attention_mask=seen, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        found += [row[width : width + n].tolist() for row, n in zip(out, wanted)]
    return found


def _continuous(model: Any, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """transformers' own continuous batching."""
    settings = transformers.GenerationConfig(
        max_new_tokens=lengths[0], do_sample=False, eos_token_id=None, pad_token_id=0, use_cuda_graph=False
    )
    found = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
    return [list(o.generated_tokens) for _, o in sorted(found.items(), key=lambda item: int(item[0].split("_")[-1]))]


def _scoring(arm: Arm, model: LlamaForCausalLM) -> tuple[Callable[[], dict[str, float]], int]:
    draw = np.random.default_rng(0)
    size = model.config.vocab_size
    shared = _ids(draw, arm["context"], size)
    items = []
    for _ in range(arm["count"]):
        context = shared + _ids(draw, int(draw.integers(10, 31)), size)
        items.append((context, [_ids(draw, int(draw.integers(4, 20)), size) for _ in range(4)]))
    amount = sum(len(c) + len(e) for c, ends in items for e in ends)
    if arm["side"] == "ours":
        engine = Engine(_language_model(model))

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


def _work(arm: Arm, vocabulary: int) -> Work:
    draw = np.random.default_rng(0)
    count = arm["count"]
    if arm["work"] == "mixed":
        prompts = [_ids(draw, int(n), vocabulary) for n in draw.integers(16, 257, count)]
        return prompts, [int(n) // 4 for n in draw.integers(183, 801, count)]
    if arm["work"] == "prefix":
        common = _ids(draw, arm["prefix"], vocabulary)
        return [common + _ids(draw, arm["tail"], vocabulary) for _ in range(count)], [arm["new"]] * count
    return [_ids(draw, arm["prompt"], vocabulary) for _ in range(count)], [arm["new"]] * count


def _model(size: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[size], max_position_embeddings=2048, bos_token_id=None, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # large enough that two tokens are never nearly as likely
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model


def _language_model(model: LlamaForCausalLM) -> LanguageModel:
    size = model.config.vocab_size
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    return LanguageModel(model, tokenizer, "random", None, torch.float32)


def _request(prompt: list[int], new: int) -> Request:
    return Request(prompt, Sampling(max_tokens=new, temperature=0.0, ignore_eos=True))


def _ids(draw: np.random.Generator, count: int, vocabulary: int) -> list[int]:
    return draw.integers(3, vocabulary, count).tolist()


def _digest(tokens: list[list[int]]) -> dict[str, float]:
    """Equal for equal tokens, and for no others that one would meet."""
    weights = [float(np.dot(row, np.arange(1, len(row) + 1))) for row in tokens]
    return {str(i): value for i, value in enumerate(weights)}


if __name__ == "__main__":
    main("engine", cases, measure, "transformers")
