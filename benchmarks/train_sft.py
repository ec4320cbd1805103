"""Supervised fine-tuning: maypole's `fit` beside trl's SFTTrainer, in real (not padding) tokens per second.

Both train the same model from the same weights on the same rows: prompts with completions of log-normal lengths, loss
on the completions, 32 rows an optimiser step, fused AdamW, no activation checkpointing, bf16 autocast where the CPU
multiplies it. trl runs in the best of its settings. Where all rows are equally long there is no padding to save, and
fp32 takes from both what bf16 gives: there the gain must be smaller.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import transformers
from datasets import Dataset
from side_by_side import Arm, Case, Measured, main
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback

from maypole.data import Dropped, RowType
from maypole.data.kinds import NUMBERS
from maypole.models import LanguageModel
from maypole.models.loading import cpu_has_bf16
from maypole.train import Loss, Segment, TokenBatch, TrainConfig, fit
from maypole.train.objective import Need
from maypole.train.supervised import negative_log_likelihood

ROWS_PER_STEP = 32
LENGTHS = {"log-normal": ((3.9, 3.9), 0.75, 539), "chat": ((4.83, 5.52), 0.6, 1023)}
"""Means of the logarithm of prompt and completion, its deviation, and the longest row."""
COMMON = {"learning_rate": 1e-3, "lr_scheduler_type": "constant"}
SHAPES: dict[str, dict[str, int]] = {
    "s8k": {"vocab_size": 8192},
    "m32k": {"vocab_size": 32000},
    "0.5B": {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2},
}  # fmt: skip
TRL = {
    "padded 32 x 1": {"batch": 32, "accumulate": 1},
    "padded 8 x 4": {"batch": 8, "accumulate": 4},
    "one by one 1 x 32": {"batch": 1, "accumulate": 32},
    "group_by_length 4 x 8": {"batch": 4, "accumulate": 8, "sampling": "group_by_length"},
    "group_by_length 2 x 16": {"batch": 2, "accumulate": 16, "sampling": "group_by_length"},
    "packing 544 x 8": {"batch": 1, "accumulate": 8, "pack": 544},
    "packing 1024 x 4": {"batch": 1, "accumulate": 4, "pack": 1024},
}
"""Rows of a batch x batches of a step."""


def cases(quick: bool) -> list[Case]:
    """The two shapes with one and two threads, then what should shrink the gain."""
    fast = "bf16" if cpu_has_bf16() else "fp32"
    steps = {"warmup": 1, "steps": 2} if quick else {"warmup": 2, "steps": 6}

    def case(shape: str, *, target: float | None = None, threads: int = 1, note: str = "", **changes: str) -> Case:
        arm = {"shape": shape, "lengths": "log-normal", "precision": fast, **steps, **changes}
        return Case(
            name=f"{shape}{note}, {threads} thread{'s' if threads > 1 else ''}",
            ours={"side": "ours", **arm},
            peers={name: {"side": "trl", **arm, **setting} for name, setting in TRL.items()},
            unit="tokens",
            scout={"warmup": 1, "steps": 1 if quick else 2},
            check={"warmup": 0, "steps": 1, "rows": ROWS_PER_STEP, "accumulate": ROWS_PER_STEP},
            tolerance=3e-3 if arm["precision"] == "bf16" else 1e-5,
            clock="cpu" if threads == 1 else "wall",
            threads=threads,
            rounds=1 if quick else 3,
            target=target,
        )

    main_cases = [case("s8k", target=2.5), case("m32k", target=5.0)]
    if quick:
        return main_cases
    return [
        *main_cases,
        case("s8k", target=2.5, threads=2),
        case("m32k", target=5.0, threads=2),
        case("s8k", note=", uniform lengths", lengths="uniform"),
        case("s8k", note=", fp32", precision="fp32"),
    ]


def measure(arm: Arm) -> Measured:
    """Train one side; the clock runs from the end of the warm-up to the end of the last step."""
    rows = data(arm)
    before = np.concatenate([[0], np.cumsum([len(row["input_ids"]) for row in rows])])
    watch = Stopwatch(arm["warmup"], arm["warmup"] + arm["steps"])
    with tempfile.TemporaryDirectory() as folder:
        if arm["side"] == "ours":
            watch.tokens = lambda state: int(before[state.global_step * ROWS_PER_STEP])
            train_ours(arm, rows, watch, folder)
        else:
            watch.tokens = lambda state: int(state.num_input_tokens_seen)
            train_trl(arm, rows, watch, folder)
    (tokens, wall, cpu), (tokens_end, wall_end, cpu_end) = watch.marks
    return Measured(
        amount=tokens_end - tokens,
        wall_seconds=wall_end - wall,
        cpu_seconds=cpu_end - cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        check={} if arm["warmup"] else watch.first,  # over several steps each side has an order of its own
    )


class Stopwatch(TrainerCallback):
    """Tokens, wall and CPU seconds at steps `begin` and `end`; loss and gradient norm of the first step."""

    def __init__(self, begin: int, end: int) -> None:
        self.at = (begin, end)
        self.tokens: Callable[[Any], int]
        self.marks: list[tuple[int, float, float]] = []
        self.first: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        if state.global_step == 1 and "loss" in logs:
            self.first = {"loss": float(logs["loss"]), "gradient norm": float(logs["grad_norm"])}

    def _mark(self, state: Any) -> None:
        if state.global_step in self.at:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks.append((self.tokens(state), time.perf_counter(), time.process_time()))


def data(arm: Arm) -> list[dict[str, list[int]]]:
    """Rows as trl wants them: input_ids, and completion_mask with 1 on what is learnt; enough for every step."""
    rng = np.random.default_rng(0)
    count = arm.get("rows") or (arm["warmup"] + arm["steps"] + 1) * ROWS_PER_STEP
    rows = []
    means, deviation, longest = LENGTHS.get(arm["lengths"], ((0.0, 0.0), 0.0, 128))
    for _ in range(count):
        uniform = arm["lengths"] == "uniform"
        sides = np.array([64, 64]) if uniform else rng.lognormal(means, deviation).astype(int) + 2
        prompt, completion = (sides * min(1.0, longest / sides.sum())).astype(int)
        ids = rng.integers(3, SHAPES[arm["shape"]]["vocab_size"], prompt + completion)
        rows.append({"input_ids": ids.tolist(), "completion_mask": [0] * prompt + [1] * completion})
    return rows


def model_and_tokenizer(shape: str, device: str = "cpu") -> tuple[Any, PreTrainedTokenizerFast]:
    """Llama with d 256, 6 layers and 8/4 heads unless told otherwise, tied embeddings, from seed 0; a tokenizer that
    only names pad and end."""
    usual = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}
    sizes: dict[str, Any] = usual | {"num_key_value_heads": 4} | SHAPES[shape]
    config = transformers.LlamaConfig(
        max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes
    )
    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(sizes["vocab_size"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0", bos_token="w1", eos_token="w2")
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config), tokenizer


@dataclass(frozen=True, slots=True)
class GivenTokens:
    """Rows that are tokens already, with 1 where they are learnt."""

    rows: ClassVar[RowType] = RowType("TOKENS", {"input_ids": NUMBERS.says, "completion_mask": NUMBERS.says})
    needs: ClassVar[frozenset[Need]] = frozenset()
    unit: ClassVar[Literal["tokens", "rows"]] = "tokens"
    linear: ClassVar[bool] = True
    overlong: ClassVar[Literal["split", "cut", "drop"]] = "cut"
    columns: ClassVar[tuple[str, ...]] = ()

    def segments(self, row: Mapping[str, Any], tokenizer: Any) -> Segment | Dropped:
        return Segment(list(row["input_ids"]), [float(m) for m in row["completion_mask"]])

    def __call__(self, batch: TokenBatch) -> Loss:
        return negative_log_likelihood(batch)


def train_ours(arm: Arm, rows: list[dict[str, list[int]]], watch: Stopwatch, folder: str) -> None:
    model, tokenizer = model_and_tokenizer(arm["shape"], arm.get("device", "cpu"))
    config = TrainConfig(
        max_steps=watch.at[1], examples_per_step=ROWS_PER_STEP, shuffle=False, precision=arm["precision"],
        gradient_checkpointing=False, save_steps=10_000, **COMMON,
    )  # fmt: skip
    lm = LanguageModel(model, tokenizer, "new", None)
    fit(lm, Dataset.from_list(rows), GivenTokens(), config, out=f"{folder}/out", callbacks=(watch,))


def train_trl(arm: Arm, rows: list[dict[str, list[int]]], watch: Stopwatch, folder: str) -> None:
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = model_and_tokenizer(arm["shape"], arm.get("device", "cpu"))
    config = SFTConfig(
        output_dir=folder, max_steps=watch.at[1], per_device_train_batch_size=arm["batch"],
        gradient_accumulation_steps=arm["accumulate"], bf16=arm["precision"] == "bf16",
        use_cpu=arm.get("device") is None,
        gradient_checkpointing=False, optim="adamw_torch_fused", completion_only_loss=True,
        train_sampling_strategy=arm.get("sampling", "sequential"), packing="pack" in arm,
        max_length=arm.get("pack", 1024), logging_first_step=True, save_strategy="no", report_to="none",
        include_num_input_tokens_seen="non_padding", dataloader_pin_memory=False, disable_tqdm=True, **COMMON,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[watch]
    )
    trainer.train()


if __name__ == "__main__":
    main("train_sft", cases, measure, "trl")
