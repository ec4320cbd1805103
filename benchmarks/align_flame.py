"""Checking facts against passages: `ModelVerifier` beside a transformers loop over the same questions, in facts/second.

Pages of five passages of 180 words, 24 facts about each. Both sides ask the same questions and must come to the same
verdicts. The loop reads every question from its beginning, one at a time or in padded batches of 8, with logits at
the last token only. Ours computes a passage once for all facts about it. Where every fact has a passage of its own
there is nothing to share and the gain must be small. A random Llama with d 256 and 6 layers, fp32; its weights are
large enough that verdicts differ.
"""

import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import Arm, Case, Measured, main
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from maypole.engine import Engine
from maypole.evaluate.fact_models import THREE, TWO, ModelVerifier, question
from maypole.evaluate.fact_report import VERDICTS
from maypole.models import LanguageModel

PASSAGES, WORDS, FACTS = 5, 180, 24
"""Of a page, of a passage, about a page."""
PAD, BOS, UNKNOWN = 0, 1, 2
LOOPS = {"transformers, one by one": {"batch": 1}, "transformers, padded batches of 8": {"batch": 8}}


def cases(quick: bool) -> list[Case]:
    """Passages read apart and together, then a passage for each fact alone."""

    def case(name: str, *, target: float | None = None, at_most: float | None = None, **changes: Any) -> Case:
        arm = {"pages": 2 if quick else 8, "together": False, "own": False, **changes}
        return Case(
            name=name,
            ours={"side": "ours", **arm},
            peers={peer: {"side": "peer", **arm, **loop} for peer, loop in LOOPS.items()},
            unit="facts",
            scout={"pages": 1},
            check=None,
            tolerance=0.0,
            rounds=1 if quick else 3,
            target=target,
            at_most=at_most,
        )

    return [
        case("five passages, each apart", target=5.0),
        case("five passages together, as FActScore", target=5.0, together=True),
        case("a passage for every fact alone", at_most=3.0, own=True),
    ]


def measure(arm: Arm) -> Measured:
    """The verdicts of one side; the clock leaves out making model and texts."""
    facts, evidence = texts(arm["pages"], arm["own"])
    lm = model(facts, evidence)
    side = ours if arm["side"] == "ours" else peer
    side(lm, facts[:2], evidence[:2], arm)  # what is made at the first call
    wall, cpu = time.perf_counter(), time.process_time()
    verdicts = side(lm, facts, evidence, arm)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(
        amount=len(facts),
        wall_seconds=wall,
        cpu_seconds=cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        check={str(i): 1.0 + VERDICTS.index(verdict) for i, verdict in enumerate(verdicts)},  # type: ignore
    )


def texts(pages: int, own: bool) -> tuple[list[str], list[list[str]]]:
    """Facts of seven words, and the passages of each: those of its page, or one that no other has."""
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, 2000, count))

    facts, evidence = [], []
    for _ in range(pages):
        page = [words(WORDS) for _ in range(PASSAGES)]
        for _ in range(FACTS):
            facts.append(words(7))
            evidence.append([words(WORDS)] if own else page)
    return facts, evidence


def model(facts: Sequence[str], evidence: Sequence[Sequence[str]]) -> LanguageModel:
    """A Llama from seed 0; its tokenizer splits words at spaces."""
    said = {*f"{question(['-'], '-', THREE)} {question(['-'], '-', TWO)} True False Unknown".split()}
    words = ["<pad>", "<s>", "<unk>", *(f"w{i}" for i in range(2000)), *sorted(said)]
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=UNKNOWN,
        initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")
    tokenizer.padding_side = "left"
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return LanguageModel(made, tokenizer, "random", None)


def ours(lm: LanguageModel, facts: list[str], evidence: list[list[str]], arm: Arm) -> list[str]:
    return list(ModelVerifier(Engine(lm), together=arm["together"])(facts, evidence))


@torch.no_grad()
def peer(lm: LanguageModel, facts: list[str], evidence: list[list[str]], arm: Arm) -> list[str]:
    """The same questions one after the other, and the same rule for what a fact's answers make of it."""
    words = TWO if arm["together"] else THREE
    ids = [lm.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    asked = [
        (i, question(some, fact, words))
        for i, (fact, passages) in enumerate(zip(facts, evidence))
        for some in ([passages[::-1]] if arm["together"] else [[passage] for passage in passages])
    ]
    heard: list[set[str]] = [set() for _ in facts]
    for first in range(0, len(asked), arm["batch"]):
        some = asked[first : first + arm["batch"]]
        batch = lm.tokenizer([text for _, text in some], padding=True, return_tensors="pt")
        logits = lm.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=1
        ).logits[:, -1]
        for (i, _), best in zip(some, logits[:, ids].argmax(-1).tolist()):
            heard[i].add(words[best])
    if arm["together"]:
        return ["supported" if "True" in said else "unknown" for said in heard]
    names = {(True, True): "disputed", (True, False): "supported", (False, True): "contradicted"}
    return [names.get(("True" in said, "False" in said), "unknown") for said in heard]


if __name__ == "__main__":
    main("align_flame", cases, measure, "transformers")
