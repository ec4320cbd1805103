"""Online preference training: `maypole.align.online` beside trl's experimental OnlineDPOTrainer, in pairs per second.

Both train the same model from the same weights, fused AdamW, bf16 autocast where the CPU multiplies it, on the same
prompts and in steps of as many: two answers a prompt are drawn at temperature 1 from all tokens, scored by the same
function, and the pair is learnt by IPO of sums against the first weights. trl runs in the best of its batch sizes.
Nobody draws what the other draws; where training begins h is 0 whatever was drawn, so that both must have the loss
1/(4β²) in their first step. Ours also keeps every sample, score and row on the disk. With short prompts there is little
to share: there the gain must be smaller.
"""

import resource
import sys
import tempfile
from copy import deepcopy
from typing import Any

import numpy as np
from align_dpo import COMMON, Stopwatch, model_and_tokenizer
from datasets import Dataset
from side_by_side import Arm, Case, Measured, main

from maypole.align.config import OnlineConfig
from maypole.align.online import online
from maypole.align.online_offline_gap.fresh import FreshPairs
from maypole.align.preference import objective_of
from maypole.align.preference_options import PreferenceOptions
from maypole.models import LanguageModel
from maypole.models.loading import cpu_has_bf16
from maypole.train import TrainConfig

BETA = 0.1


def cases(quick: bool) -> list[Case]:
    """Prompts of 150 tokens with answers of 64, then prompts so short that there is nothing to share, then fp32."""
    fast = "bf16" if cpu_has_bf16() else "fp32"

    def case(name: str, target: float | None = None, **changes: Any) -> Case:
        arm = {"shape": "s8k", "precision": fast, "pairs": 16, "prompt": 150, "answer": 64, "warmup": 1, "steps": 2}
        arm |= changes
        return Case(
            name=name,
            ours={"side": "ours", **arm},
            peers={f"padded {n} x {16 // n}": {"side": "trl", "batch": n, **arm} for n in (16, 8, 4)},
            unit="pairs",
            check={"warmup": 0, "steps": 1},
            tolerance=2e-2 if arm["precision"] == "bf16" else 1e-4,
            rounds=1 if quick else 3,
            target=target,
        )

    long = case("s8k, prompts of 150, answers of 64", 2.5)
    if quick:
        return [long]
    short = case("s8k, prompts of 8, answers of 64", prompt=8)
    return [long, short, case("s8k, prompts of 150, answers of 64, fp32", precision="fp32")]


def measure(arm: Arm) -> Measured:
    """Train one side; the clock runs from the end of the warm-up to the end of the last step."""
    watch = FirstLoss(arm["warmup"], arm["warmup"] + arm["steps"])
    with tempfile.TemporaryDirectory() as folder:
        (train_ours if arm["side"] == "ours" else train_trl)(arm, prompts(arm), watch, folder)
    (wall, cpu), (wall_end, cpu_end) = watch.marks
    return Measured(
        amount=float(arm["pairs"] * arm["steps"]),
        wall_seconds=wall_end - wall,
        cpu_seconds=cpu_end - cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        check={"loss 1": watch.numbers["loss 1"]},
    )


class FirstLoss(Stopwatch):
    """The clock; of what is logged the losses alone, for gradients are of what each side drew."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self.numbers[f"loss {state.global_step}"] = float(logs["loss"])


def prompts(arm: Arm) -> list[dict[str, str]]:
    """Texts, one word a token, of the wished length by three in ten more or less."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(int(0.7 * arm["prompt"]), int(1.3 * arm["prompt"]) + 1, arm["pairs"] * 4)
    return [{"prompt": " ".join(f"w{i}" for i in rng.integers(3, 8192, n))} for n in lengths]


def score(prompts: list, completions: list, **columns: Any) -> Any:
    """The same for both sides: it tells any two answers apart."""
    return [float(sum(text.encode()) % 10_007) for text in completions]


def train_ours(arm: Arm, rows: list[dict[str, str]], watch: Stopwatch, folder: str) -> None:
    model, tokenizer = model_and_tokenizer(arm["shape"], arm.get("device", "cpu"))
    steps = watch.at[1]
    train = TrainConfig(
        max_steps=steps, examples_per_step=arm["pairs"], precision=arm["precision"], gradient_checkpointing=False,
        save_steps=10_000, logging_steps=1, **COMMON,
    )  # fmt: skip
    method = FreshPairs(objective_of(PreferenceOptions(loss="ipo-sum", beta=BETA)), arm["answer"], "hard", 0)
    online(
        LanguageModel(model, tokenizer, "new", None), Dataset.from_list(rows), score, method,
        OnlineConfig(rounds=steps, prompts_per_round=arm["pairs"]), train, out=f"{folder}/out", callbacks=(watch,),
    )  # fmt: skip


def train_trl(arm: Arm, rows: list[dict[str, str]], watch: Stopwatch, folder: str) -> None:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    model, tokenizer = model_and_tokenizer(arm["shape"], arm.get("device", "cpu"))
    config = OnlineDPOConfig(
        output_dir=folder, max_steps=watch.at[1], per_device_train_batch_size=arm["batch"],
        gradient_accumulation_steps=arm["pairs"] // arm["batch"], beta=[BETA], loss_type="ipo",
        max_new_tokens=arm["answer"], max_length=512, temperature=1.0, top_k=0, use_cpu=arm.get("device") is None,
        bf16=arm["precision"] == "bf16", gradient_checkpointing=False,
        optim="adamw_torch_fused", logging_steps=1, save_strategy="no", report_to="none",
        dataloader_pin_memory=False, disable_tqdm=True, **COMMON,
    )  # fmt: skip
    trainer = OnlineDPOTrainer(
        model, ref_model=deepcopy(model), reward_funcs=score, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[watch],
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    main("align_online", cases, measure, "trl")
