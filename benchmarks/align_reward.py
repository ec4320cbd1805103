"""Reward models: `fit` with the Bradley-Terry objective beside trl's RewardTrainer, in real tokens per second.

Both train the same model under the same score head on the same pairs in the same order, fused AdamW, no activation
checkpointing, bf16 autocast where the CPU multiplies it. Tokens are those of both texts of a pair, prompt and answer,
whoever computes the prompt once or twice; padding does not count. trl runs in the best of its settings. Where prompts
are short and all rows equally long there is little to share and nothing to pad: there the gain must be smaller.
"""

import resource
import sys
import tempfile
from typing import Any

from align_dpo import COMMON, Stopwatch, data, model_and_tokenizer
from datasets import Dataset
from side_by_side import Arm, Case, Measured, main

from maypole.data import PAIR, read
from maypole.models import LanguageModel
from maypole.models.loading import cpu_has_bf16
from maypole.models.score_head import with_score_head
from maypole.train import BradleyTerry, TrainConfig, fit


def cases(quick: bool) -> list[Case]:
    """Lengths as preference data has them, in both precisions, then what should shrink the gain."""
    fast = "bf16" if cpu_has_bf16() else "fp32"

    def case(name: str, target: float | None = None, **changes: Any) -> Case:
        arm = {"shape": "s8k", "lengths": "log-normal", "precision": fast, "pairs": 16} | changes
        arm |= {"warmup": 1, "steps": 3}
        sizes = [n for n in (16, 8, 4, 2, 1) if n <= arm["pairs"]]
        return Case(
            name=name,
            ours={"side": "ours", **arm},
            peers={f"padded {n} x {arm['pairs'] // n}": {"side": "trl", "batch": n, **arm} for n in sizes},
            unit="tokens",
            check={"warmup": 0, "steps": 2},
            tolerance=2e-2 if arm["precision"] == "bf16" else 1e-4,
            rounds=1 if quick else 3,
            target=target,
        )

    own = [case("s8k", 2.0), case("7.5M, fp32", 2.0, shape="7.5M", precision="fp32", pairs=8)]
    return own if quick else [*own, case("s8k, short prompts and uniform lengths", lengths="uniform")]


def measure(arm: Arm) -> Measured:
    """Train one side; the clock runs from the end of the warm-up to the end of the last step."""
    count = arm["warmup"] + arm["steps"]
    rows, lengths = data(arm, count * arm["pairs"])
    watch = Stopwatch(arm["warmup"], count)
    with tempfile.TemporaryDirectory() as folder:
        (train_ours if arm["side"] == "ours" else train_trl)(arm, rows, watch, folder)
    (wall, cpu), (wall_end, cpu_end) = watch.marks
    per_step = lengths.reshape(count, arm["pairs"]).sum(1)
    return Measured(
        amount=float(per_step[arm["warmup"] :].sum()),
        wall_seconds=wall_end - wall,
        cpu_seconds=cpu_end - cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        check=watch.numbers,
    )


def judge(shape: str) -> LanguageModel:
    """The model of `align_dpo` under a fresh score head."""
    model, tokenizer = model_and_tokenizer(shape)
    return with_score_head(LanguageModel(model, tokenizer, "new", None), seed=0)


def train_ours(arm: Arm, rows: list[dict[str, str]], watch: Stopwatch, folder: str) -> None:
    config = TrainConfig(
        max_steps=watch.at[1], examples_per_step=arm["pairs"], shuffle=False, precision=arm["precision"],
        gradient_checkpointing=False, save_steps=10_000, logging_steps=1, **COMMON,
    )  # fmt: skip
    pairs = read(Dataset.from_list(rows), PAIR)
    fit(judge(arm["shape"]), pairs, BradleyTerry(), config, out=f"{folder}/out", callbacks=(watch,))


def train_trl(arm: Arm, rows: list[dict[str, str]], watch: Stopwatch, folder: str) -> None:
    from trl import RewardConfig, RewardTrainer

    lm = judge(arm["shape"])
    config = RewardConfig(
        output_dir=folder, max_steps=watch.at[1], per_device_train_batch_size=arm["batch"],
        gradient_accumulation_steps=arm["pairs"] // arm["batch"], bf16=arm["precision"] == "bf16", use_cpu=True,
        gradient_checkpointing=False, optim="adamw_torch_fused", train_sampling_strategy="sequential",
        logging_steps=1, save_strategy="no", report_to="none", dataloader_pin_memory=False, disable_tqdm=True,
        **COMMON,
    )  # fmt: skip
    trainer = RewardTrainer(
        model=lm.model, args=config, train_dataset=Dataset.from_list(rows), processing_class=lm.tokenizer,
        callbacks=[watch],
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    main("align_reward", cases, measure, "trl")
