"""Preference training: `fit` with the DPO objective beside trl's DPOTrainer, in real tokens per second.

Both train the same model from the same weights on the same pairs in the same order, 16 pairs an optimiser step, fused
AdamW, no activation checkpointing, bf16 autocast where the CPU multiplies it. Tokens are those of both answers and of
the prompt before each, whoever computes the prompt once or twice; padding does not count. trl runs in the best of its
settings. With a live reference both ask a second, frozen model at every step; with a cached one both have its
log-probs before the clock runs. Where prompts are short and all rows equally long there is little to share and
nothing to pad: there the gain must be smaller.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from side_by_side import Arm, Case, Measured, main
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from maypole.align.preference import Pairs
from maypole.data import read
from maypole.models import LanguageModel
from maypole.models.loading import cpu_has_bf16
from maypole.train import Objective, TrainConfig, fit

PAIRS = Pairs()
COMMON = {"learning_rate": 1e-4, "lr_scheduler_type": "constant"}
SHAPES: dict[str, dict[str, Any]] = {
    "s8k": {"vocab_size": 8192, "num_hidden_layers": 6, "intermediate_size": 704, "num_key_value_heads": 4,
            "tie_word_embeddings": True},
    "7.5M": {"vocab_size": 8000, "num_hidden_layers": 4, "intermediate_size": 768, "num_key_value_heads": 8,
             "tie_word_embeddings": False},
    "1.1B": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
             "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
}  # fmt: skip
LENGTHS = {
    "s8k": {"prompt": 4.6, "answer": 4.0, "longest": 255},
    "7.5M": {"prompt": 4.66, "answer": 4.19, "longest": 255},
    "1.1B": {"prompt": 4.83, "answer": 5.52, "longest": 511},
}
"""Means of the logarithm, its deviation is 0.6: 120 tokens of prompt and 65 of an answer, 126 and 80, 150 and 300."""
UNIFORM = {"prompt": 8, "answer": 64}


def cases(quick: bool) -> list[Case]:
    """A live and a cached reference, another model in fp32, then what should shrink the gain."""
    fast = "bf16" if cpu_has_bf16() else "fp32"

    def case(name: str, target: float | None = None, at_most: float | None = None, **changes: Any) -> Case:
        arm = {"shape": "s8k", "lengths": "log-normal", "precision": fast, "pairs": 16, "reference": "live"} | changes
        arm |= {"warmup": 2 if arm["reference"] == "cached" else 1, "steps": 3}
        sizes = [n for n in (16, 8, 4, 2, 1) if n <= arm["pairs"]]
        return Case(
            name=name,
            ours={"side": "ours", **arm},
            peers={f"padded {n} x {arm['pairs'] // n}": {"side": "trl", "batch": n, **arm} for n in sizes},
            unit="tokens",
            check={"warmup": 0, "steps": 2 if quick else 10},
            tolerance=2e-2 if arm["precision"] == "bf16" else 1e-4,
            rounds=1 if quick else 3,
            target=target,
            at_most=at_most,
        )

    live = case("s8k, live reference", 4.0)
    cached = case("s8k, cached reference", 5.0, reference="cached")
    if quick:
        return [live, cached]
    small = {"shape": "7.5M", "precision": "fp32", "pairs": 8, "reference": "cached"}
    return [
        live,
        cached,
        case("7.5M, cached reference, fp32", 2.5, **small),
        case("s8k, short prompts and uniform lengths, live reference", lengths="uniform"),
    ]


def measure(arm: Arm) -> Measured:
    """Train one side; the clock runs from the end of the warm-up to the end of the last step."""
    # Cached log-probs are known when the clock begins: from the second pass on, the first being the warm-up.
    count = arm["warmup"] if arm["reference"] == "cached" and arm["warmup"] else arm["warmup"] + arm["steps"]
    rows, lengths = data(arm, count * arm["pairs"])
    watch = Stopwatch(arm["warmup"], arm["warmup"] + arm["steps"])
    with tempfile.TemporaryDirectory() as folder:
        (train_ours if arm["side"] == "ours" else train_trl)(arm, rows, watch, folder)
    (wall, cpu), (wall_end, cpu_end) = watch.marks
    per_step = lengths.reshape(count, arm["pairs"]).sum(1)
    timed = [per_step[step % count] for step in range(*watch.at)]
    return Measured(
        amount=float(sum(timed)),
        wall_seconds=wall_end - wall,
        cpu_seconds=cpu_end - cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        check=watch.numbers,
    )


class Stopwatch(TrainerCallback):
    """Wall and CPU seconds at steps `begin` and `end`; loss and gradient norm of every step."""

    def __init__(self, begin: int, end: int) -> None:
        self.at = (begin, end)
        self.marks: list[tuple[float, float]] = []
        self.numbers: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.numbers[f"loss {state.global_step}"] = float(logs["loss"])
            self.numbers[f"gradient norm {state.global_step}"] = float(logs["grad_norm"])

    def _mark(self, state: Any) -> None:
        if state.global_step in self.at:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks.append((time.perf_counter(), time.process_time()))


def data(arm: Arm, count: int) -> tuple[list[dict[str, str]], np.ndarray]:
    """Pairs of texts, one word a token, and the tokens of each pair: prompt and answer, twice, with both ends."""
    rng = np.random.default_rng(0)
    size = SHAPES[arm["shape"]]["vocab_size"]
    rows, tokens = [], []

    def words(n: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(3, size, n))

    def drawn(kind: str) -> int:
        lengths = LENGTHS[arm["shape"]]
        return min(int(rng.lognormal(lengths[kind], 0.6)) + 1, int(lengths["longest"]))

    for _ in range(count):
        uniform = arm["lengths"] == "uniform"
        prompt, chosen, rejected = (
            UNIFORM[kind] if uniform else drawn(kind) for kind in ("prompt", "answer", "answer")
        )
        rows.append({"prompt": words(prompt), "chosen": f" {words(chosen)}", "rejected": f" {words(rejected)}"})
        tokens.append(2 * prompt + chosen + rejected + 2)
    return rows, np.array(tokens)


def model_and_tokenizer(shape: str, device: str = "cpu") -> tuple[Any, PreTrainedTokenizerFast]:
    """A Llama, with d 256 and 8 heads unless told otherwise, from seed 0; a tokenizer of words."""
    usual = {"hidden_size": 256, "num_attention_heads": 8, "max_position_embeddings": 1024}
    sizes: dict[str, Any] = usual | SHAPES[shape]
    config = transformers.LlamaConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    torch.manual_seed(0)
    names = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, config.vocab_size))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )  # fmt: skip
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config), tokenizer


def train_ours(
    arm: Arm, rows: list[dict[str, str]], watch: Stopwatch, folder: str, objective: Objective = PAIRS
) -> None:
    model, tokenizer = model_and_tokenizer(arm["shape"], arm.get("device", "cpu"))
    config = TrainConfig(
        max_steps=watch.at[1], examples_per_step=arm["pairs"], shuffle=False, precision=arm["precision"],
        gradient_checkpointing=False, reference_logps=arm["reference"], save_steps=10_000, logging_steps=1, **COMMON,
    )  # fmt: skip
    live = LanguageModel(deepcopy(model), tokenizer, "reference", None) if arm["reference"] == "live" else None
    fit(
        LanguageModel(model, tokenizer, "new", None), read(Dataset.from_list(rows), objective.rows), objective, config,
        out=f"{folder}/out", reference=live or "initial", callbacks=(watch,),
    )  # fmt: skip


def train_trl(arm: Arm, rows: list[dict[str, str]], watch: Stopwatch, folder: str) -> None:
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = model_and_tokenizer(arm["shape"], arm.get("device", "cpu"))
    config = DPOConfig(
        output_dir=folder, max_steps=watch.at[1], per_device_train_batch_size=arm["batch"],
        gradient_accumulation_steps=arm["pairs"] // arm["batch"], bf16=arm["precision"] == "bf16",
        use_cpu=arm.get("device") is None, gradient_checkpointing=False, optim="adamw_torch_fused",
        precompute_ref_log_probs=arm["reference"] == "cached",
        train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none",
        dataloader_pin_memory=False, disable_tqdm=True, **COMMON,
    )  # fmt: skip
    trainer = DPOTrainer(
        model, ref_model=deepcopy(model), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[watch],
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    main("align_dpo", cases, measure, "trl")
