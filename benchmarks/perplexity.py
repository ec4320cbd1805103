"""Scoring a corpus: `maypole curate score`'s function beside a transformers loop over padded batches, in tokens/second.

Ours reads a JSONL file, scores packed documents through the chunked head and writes Parquet; the peer has its texts in
memory and keeps one number a document: it is the loop of the `evaluate` library's perplexity metric. Batches of 16 as
documents come, of 1, and of 16 sorted by length, which no corpus that streams can have. A random Llama with d 256 and 6
layers, fp32, log-normal lengths; with uniform lengths there is no padding to save and the gain must be smaller; with a
vocabulary of 100,000 our memory must stay below 2 GB.
"""

import json
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from side_by_side import Arm, Case, Measured, main
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from maypole.core.progress import set_quiet
from maypole.curate.corpus import open_corpus
from maypole.curate.perplexity_pruning import Scores, score
from maypole.models import LanguageModel

LONGEST = 1000
MEAN = 160
PAD, BOS = 0, 1
NOT_COUNTED = -100
LOOPS = {
    "batches of 16": {"batch": 16},
    "one by one": {"batch": 1},
    "batches of 16, sorted": {"batch": 16, "sort": True},
}


def cases(quick: bool) -> list[Case]:
    """The loop in three forms on log-normal lengths, then uniform lengths, then a large vocabulary."""

    def case(name: str, *, peer: str = "batches of 16", documents: int = 256, target: float | None = None,
             most_bytes: int | None = None, lengths: str = "log-normal", vocabulary: int = 32_000) -> Case:  # fmt: skip
        arm = {"lengths": lengths, "vocabulary": vocabulary, "documents": documents // 4 if quick else documents}
        return Case(
            name=name,
            ours={"side": "ours", **arm},
            peers={peer: {"side": "peer", **arm, **LOOPS[peer]}},
            unit="tokens",
            check={"documents": 32},
            tolerance=1e-5,
            rounds=1 if quick else 3,
            target=target,
            most_bytes=most_bytes,
        )

    return [
        case("log-normal lengths", target=3.0),
        case("log-normal lengths, alone", peer="one by one"),
        case("log-normal lengths, sorted", peer="batches of 16, sorted"),
        case("uniform lengths", lengths="uniform"),
        case("vocabulary of 100,000", vocabulary=100_000, documents=128, most_bytes=2 * 10**9),
    ]


def measure(arm: Arm) -> Measured:
    """Score one corpus by one side; the clock leaves out making model and texts."""
    lm, texts = model(arm["vocabulary"]), corpus(arm)
    side = ours if arm["side"] == "ours" else peer
    with tempfile.TemporaryDirectory() as folder:
        side(lm, texts[:2], written(Path(folder, "first.jsonl"), texts[:2]), arm)  # what is made at the first call
        file = written(Path(folder, "corpus.jsonl"), texts)
        wall, cpu = time.perf_counter(), time.process_time()
        nll, tokens = side(lm, texts, file, arm)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(
        amount=tokens,
        wall_seconds=wall,
        cpu_seconds=cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        check={"perplexity": math.exp(nll / tokens), "tokens": tokens},
    )


def model(vocabulary: int) -> LanguageModel:
    """Llama with d 256, 6 layers, 8/4 heads, tied embeddings, from seed 0; its tokenizer splits words at spaces."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=PAD,
        bos_token_id=BOS, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, vocabulary))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return LanguageModel(made, tokenizer, "random", "random")


def corpus(arm: Arm) -> list[str]:
    """Random words; log-normal lengths of which padding in batches of 16 would make about 2.5 times as many."""
    rng = np.random.default_rng(0)
    count = arm["documents"]
    if arm["lengths"] == "uniform":
        lengths = np.full(count, MEAN)
    else:
        lengths = np.clip(rng.lognormal(math.log(MEAN) - 0.65**2 / 2, 0.65, count).astype(int), 2, LONGEST)
    return [" ".join(f"w{i}" for i in rng.integers(3, arm["vocabulary"], n)) for n in lengths]


def written(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def ours(lm: LanguageModel, texts: list[str], file: Path, arm: Arm) -> tuple[float, int]:
    """(nll, tokens) of all documents, from the files that `curate score` leaves."""
    set_quiet(True)
    done = score(lm, open_corpus([file]), out=file.with_suffix(".scores"))
    parts = list(Scores.open(done.path).parts())
    nll = sum(float((part.nll.astype(np.float64) * part.n_tokens).sum()) for part in parts)
    return nll, sum(int(part.n_tokens.sum()) for part in parts)


@torch.no_grad()
def peer(lm: LanguageModel, texts: list[str], file: Path, arm: Arm) -> tuple[float, int]:
    """(nll, tokens) of all documents, in padded batches with all their logits."""
    texts = sorted(texts, key=len) if "sort" in arm else texts
    nll, tokens = 0.0, 0
    for first in range(0, len(texts), arm["batch"]):
        batch = lm.tokenizer(texts[first : first + arm["batch"]], padding=True, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        targets = ids[:, 1:].where(mask[:, 1:].bool(), NOT_COUNTED)
        targets = torch.nn.functional.pad(targets, (0, 1), value=NOT_COUNTED)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        nll, tokens = nll + float(losses.double().sum()), tokens + int((targets != NOT_COUNTED).sum())
    return nll, tokens


if __name__ == "__main__":
    main("perplexity", cases, measure, "transformers")
