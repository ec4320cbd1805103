"""A byte tokenizer and tiny models that speak it: what the engine's tests run on."""

from typing import Any

import peft
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from maypole.engine.scheduler import Scheduler
from maypole.models.language_model import LanguageModel
from tests.tiny_models import model_of

VOCABULARY = 260
PAD, BOS, EOS, END = 0, 1, 2, 3
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokenizer() -> Any:
    """One token per byte, ids 4 to 259; text begins with <s>."""
    special = ["<pad>", "<s>", "</s>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|end|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def lm_of(family: str = "llama", seed: int = 0, **changes: Any) -> LanguageModel:
    """A tiny random model with the byte tokenizer."""
    model = model_of(family, seed, **{"vocab_size": VOCABULARY, **changes})
    return LanguageModel(model, byte_tokenizer(), f"tiny {family}", None)


def with_adapters(lm: LanguageModel, *names: str) -> LanguageModel:
    """`lm` wrapped by PEFT with LoRA adapters whose weights are far from zero."""
    from dataclasses import replace

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(lm.transformer, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return replace(lm, model=far_from_zero(model))


def far_from_zero(model: Any) -> Any:
    """A PEFT model whose LoRA weights are drawn anew, large enough to matter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.15, generator=generator)
    return model.eval()


def random_ids(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def hf_greedy(model: Any, prompt: list[int], tokens: int) -> list[int]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, pad_token_id=PAD)
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def hf_logprobs(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
    logits = model(torch.tensor([prompt + completion]), use_cache=False).logits[0].float()
    table = torch.log_softmax(logits, -1)
    return [float(table[len(prompt) - 1 + i, t]) for i, t in enumerate(completion)]


def check(scheduler: Scheduler) -> None:
    """No row is lost, no count is off, nothing is beyond the budget."""
    memory = scheduler.memory
    held = [member for slots in memory.pools.values() for member in slots.members]
    assert {id(s) for s in held} == {id(s) for s in scheduler.running}
    assert len(held) == len(scheduler.running)
    users: dict[int, int] = {}
    for sequence in scheduler.running:
        assert sequence.slots is not None
        assert sequence.slots.members[sequence.row] is sequence
        assert 0 <= sequence.held - sequence.base <= sequence.slots.length
        if sequence.node is not None:
            assert sequence.node.end == sequence.base
            users[id(sequence.node)] = users.get(id(sequence.node), 0) + 1
    nodes = list(memory.prefixes.nodes())
    assert users.keys() <= {id(node) for node in nodes}  # what is read has not made way
    assert all(node.users == users.get(id(node), 0) for node in nodes)
    assert memory.prefixes.tokens == sum(len(n.tokens) for n in nodes)
    allocated = sum(
        t.nbytes
        for layers in [*(s.layers for s in memory.pools.values()), *(n.layers for n in nodes)]
        for pair in layers.values()
        for t in pair
    )
    assert allocated == memory.bytes <= memory.max_bytes
