"""Tiny checkpoints on the disk, a byte-level tokenizer without training, and a subprocess that has no maypole."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from maypole.models import LanguageModel, save
from tests.tiny_models import VOCABULARY, model_of

TEXT = "the cat saw a dog"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Three special tokens, then one token a byte for the commonest bytes: 97 in all."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (not c.isascii(), c != "Ġ", c))
    names = ["<|pad|>", "<|bos|>", "<|eos|>", "Ġ", *[c for c in letters if c != "Ġ"]][:VOCABULARY]
    inner = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>",
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )  # fmt: skip


@pytest.fixture
def make(tmp_path, tokenizer) -> Callable[..., Path]:
    """``make("llama", dtype=...)`` writes a tiny checkpoint and returns its directory."""

    def make(family: str = "llama", *, name: str = "", dtype: torch.dtype = torch.float32, **changes) -> Path:
        path = tmp_path / (name or family)
        save(LanguageModel(model_of(family, **changes), tokenizer, "tiny", None, dtype), path)
        return path

    return make


def logits(model, tokenizer) -> torch.Tensor:
    """(tokens, vocabulary) in fp32."""
    model.eval()
    with torch.no_grad():
        return model(**tokenizer(TEXT, return_tensors="pt")).logits[0].float()


_STRANGER = """
import sys, json
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "maypole":
            raise ImportError("no maypole here")
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import AutoPeftModelForCausalLM
torch.set_num_threads(1)
for path in json.loads(sys.argv[1]):
    adapter = __import__("os").path.exists(path + "/adapter_config.json")
    kind = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    model, tokenizer = kind.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        torch.save(model(**tokenizer(sys.argv[2], return_tensors="pt")).logits[0].float(), path + "/logits.pt")
"""


def as_a_stranger_reads(paths: list[Path], where: Path) -> dict[str, torch.Tensor]:
    """Logits of the text by transformers and peft alone, in a process that cannot import maypole."""
    words = [sys.executable, "-I", "-c", _STRANGER, json.dumps([str(p) for p in paths]), TEXT]
    ran = subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return {p.name: torch.load(p / "logits.pt", weights_only=True) for p in paths}
