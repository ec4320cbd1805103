import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

from maypole.cli.main import run
from maypole.core.errors import ArtifactError, ConfigError, MissingExtra, UnsupportedModel, UserError
from maypole.models import LanguageModel, PeftOptions, export_gguf, load, merged, new_adapter, save
from tests.tiny_models import model_of

LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    "The cat didn't see 1234567 dogs; it SAW 12 'em, THEY'LL say.",
    "  two  spaces,\ttabs\t\tand\r\nlines\n\n\n   ", " ", "x", "a+b != c->d(e[0]);  # {}", "naïve café, Ünïcödé",
    "日本語のテキスト。漢字かな交じり", "🙂👩‍👩‍👧 flags 🇩🇪", "مرحبا بالعالم and 한국어", "x²½ ①Ⅳ ٣",
    "no\u00a0break\u2003space", "snake_case camelCase HTTPServer2Go",
    "<|eos|> inside a text<|user|> twice  <|eos|>", "don’t “quote” — dash…",
)  # fmt: skip
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 128},  # the one that transformers' reader of GGUF takes for granted
}
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def byte_level(*split, ignore_merges: bool = False, normalizer=None, **level) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits text by the steps `split`, learnt from the awkward texts."""
    inner = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps = [*split, pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **level})]
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps) if split else steps[0]
    inner.decoder = decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    special = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    )
    template = "{% for m in messages %}{%- generation -%}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>", chat_template=template
    )


def splitting(regex: str, **options) -> PreTrainedTokenizerFast:
    return byte_level(pre_tokenizers.Split(Regex(regex), behavior="isolated"), **options)


def sentencepiece(**options) -> LlamaTokenizer:
    """BPE over characters with bytes for the rest, merged in the order of scores as SentencePiece's are."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.train_from_iterator(TEXTS[:6] * 3, trainers.BpeTrainer(vocab_size=200))
    learnt = sorted(inner.get_vocab(), key=inner.get_vocab().get)
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *BYTES, *learnt])}
    pairs = [(t[:i], t[i:]) for t in learnt for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    made = LlamaTokenizer(vocab=vocab, merges=pairs, **options)
    made.add_tokens([AddedToken("<|user|>", normalized=False)])
    return made


def with_a_space_before_every_text() -> LlamaTokenizer:
    """As SentencePiece does it; transformers' Llama tokenizer leaves texts that begin with one alone."""
    made = sentencepiece()
    made._tokenizer.pre_tokenizer = None
    made._tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


TOKENIZERS = {
    "gpt-2": lambda: byte_level(use_regex=True),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama-bpe": lambda: splitting(LLAMA3, ignore_merges=True),
    "smaug-bpe": lambda: splitting(LLAMA3),
    "qwen2": lambda: splitting(QWEN2, normalizer=normalizers.NFC()),
    "tekken": lambda: splitting(TEKKEN, ignore_merges=True),
    "default": with_a_space_before_every_text,
}
"""llama.cpp's name for a way of splitting text -> a tokenizer that splits so; "default" is SentencePiece's."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return TOKENIZERS["qwen2"]()


def tiny(family: str, tokenizer, **changes) -> LanguageModel:
    sizes = {"vocab_size": len(tokenizer) + 5, "bos_token_id": tokenizer.bos_token_id}
    model = model_of(family, **{**FAMILIES[family], **sizes, "eos_token_id": tokenizer.eos_token_id, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)  # norms and biases that matter
    return LanguageModel(model, tokenizer, f"tiny-{family}", None)


def fields(path: Path) -> dict:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def command(line: str) -> int:
    return run(f"models {line}".split())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_export_with_the_same_logits(tmp_path, tokenizer, family, tied):
    lm = tiny(family, tokenizer, tie_word_embeddings=tied)
    export_gguf(lm, tmp_path / "m.gguf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    assert read.config.tie_word_embeddings is tied
    ids = torch.randint(len(tokenizer), (2, 19), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, lm.model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_matrices_are_rounded_to_the_type_that_is_asked_for_and_vectors_stay_exact(tmp_path, tokenizer, kind):
    lm = tiny("qwen2", tokenizer, intermediate_size=64)
    export_gguf(lm, tmp_path / "m.gguf", dtype=kind)
    own = {t.name: t for t in GGUFReader(tmp_path / "m.gguf").tensors}
    state = lm.model.state_dict()
    assert len(own) == len(state)
    asked = GGMLQuantizationType[kind.upper()]
    for name, key in (("token_embd.weight", "embed_tokens"), ("blk.1.ffn_down.weight", "layers.1.mlp.down_proj")):
        wanted = state[f"model.{key}.weight"].numpy()
        found = dequantize(own[name].data, asked).reshape(wanted.shape)
        assert own[name].tensor_type == asked
        np.testing.assert_array_equal(found, dequantize(quantize(wanted, asked), asked))
        assert np.abs(found - wanted).max() < {"f32": 1e-9, "f16": 1e-3, "bf16": 5e-3, "q8_0": 5e-3}[kind]
    bias = own["blk.2.attn_k.bias"]
    assert bias.tensor_type == GGMLQuantizationType.F32
    np.testing.assert_array_equal(bias.data, state["model.layers.2.self_attn.k_proj.bias"].numpy())


def test_the_file_says_what_the_model_and_its_tokenizer_are(tmp_path, tokenizer):
    lm = tiny("qwen3", tokenizer)
    lm.model.generation_config = GenerationConfig(eos_token_id=[tokenizer.convert_tokens_to_ids("<|user|>"), 2])
    export_gguf(lm, tmp_path / "m.gguf")
    found = fields(tmp_path / "m.gguf")
    for name, value in {
        "general.architecture": "qwen3", "general.name": "tiny-qwen3", "qwen3.context_length": 512,
        "qwen3.attention.key_length": 128, "qwen3.attention.head_count_kv": 2, "qwen3.vocab_size": len(tokenizer) + 5,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False,
    }.items():  # fmt: skip
        assert found[name] == value, name
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[-1] == f"[PAD{len(tokenizer) + 4}]"
    assert kinds == [3] * 4 + [1] * (len(tokenizer) - 4) + [5] * 5
    assert len(found["tokenizer.ggml.merges"]) == len(tokenizer) - 260


def test_marks_for_trainers_leave_the_chat_template_and_what_it_renders_stays(tmp_path, tokenizer):
    export_gguf(tiny("llama", tokenizer), tmp_path / "m.gguf")
    template = fields(tmp_path / "m.gguf")["tokenizer.chat_template"]
    assert "generation" not in template
    messages = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b"}]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template) == wanted


@pytest.mark.parametrize("pre", TOKENIZERS)
def test_the_way_a_tokenizer_splits_text_is_found_by_its_parts(tmp_path, pre):
    export_gguf(tiny("llama", TOKENIZERS[pre]()), tmp_path / "m.gguf")
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == pre


def test_where_llama_cpp_puts_spaces_that_a_tokenizer_does_not_is_said(tmp_path, caplog):
    export_gguf(tiny("llama", sentencepiece()), tmp_path / "m.gguf")
    assert "llama.cpp puts a space before texts that begin with one" in caplog.text
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.add_space_prefix"] is True
    caplog.clear()
    export_gguf(tiny("llama", sentencepiece(add_prefix_space=False)), tmp_path / "none.gguf")
    assert caplog.text == ""
    assert fields(tmp_path / "none.gguf")["tokenizer.ggml.add_space_prefix"] is False


def test_tokens_around_a_text_are_found_by_what_the_tokenizer_does(tmp_path):
    made = TOKENIZERS["gpt-2"]()
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 1), ("<|eos|>", 2)]
    )
    export_gguf(tiny("llama", made), tmp_path / "m.gguf")
    found = fields(tmp_path / "m.gguf")
    assert found["tokenizer.ggml.add_bos_token"] is found["tokenizer.ggml.add_eos_token"] is True


def test_a_file_without_tokenizer_is_used_by_token_ids(tmp_path, tokenizer):
    export_gguf(tiny("llama", splitting(r" ?\p{L}+|\s+")), tmp_path / "m.gguf", tokenizer=False)
    found = fields(tmp_path / "m.gguf")
    assert found["tokenizer.ggml.model"] == "none"
    assert not any("tokens" in name for name in found)


def test_a_model_that_looks_back_a_window_only_is_written_with_that_context(tmp_path, tokenizer, caplog):
    export_gguf(tiny("mistral", tokenizer, sliding_window=6), tmp_path / "m.gguf")
    assert fields(tmp_path / "m.gguf")["llama.context_length"] == 6
    assert "the context is written as 6 tokens" in caplog.text


def _strip(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    made.add_tokens([AddedToken("<|mask|>", lstrip=True)])
    return made


def _other_frame(made: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    frame = processors.TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", 3)])
    made._tokenizer.post_processor = frame
    return made


def _words() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({"a": 0, "<|eos|>": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|eos|>")


def _half_merged() -> LlamaTokenizer:
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *BYTES, "a", "b", "c", "ab", "bc", "abc"])}
    return LlamaTokenizer(vocab=vocab, merges=[("a", "b"), ("b", "c"), ("ab", "c")])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: splitting(r" ?\p{L}+|\s+"), r"text split by ' \?\\\\p\{L\}\+\|\\\\s\+'"),
        (lambda: splitting(QWEN2, ignore_merges=True), "text split by"),
        (lambda: byte_level(pre_tokenizers.Whitespace(), use_regex=True), "text split by Whitespace and ByteLevel"),
        (lambda: byte_level(add_prefix_space=True, use_regex=True), "gets a space before it"),
        (lambda: byte_level(use_regex=True, normalizer=normalizers.Lowercase()), "a Lowercase normalizer"),
        (lambda: _strip(byte_level(use_regex=True)), r"the token '<\|mask\|>', which takes the spaces"),
        (lambda: _other_frame(byte_level(use_regex=True)), r"special tokens around a text .*<\|user\|>"),
        (_words, "a WordLevel model"),
        (_half_merged, "'abc' is not merged from 'a' and 'bc'"),
    ],
)
def test_what_llama_cpp_cannot_say_of_a_tokenizer_is_an_error_that_names_it(tmp_path, made, said):
    with pytest.raises(UserError, match=said):
        export_gguf(tiny("llama", made()), tmp_path / "m.gguf")
    assert not os.listdir(tmp_path)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 128,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "no 'gelu' activation"),
        ("qwen3", {"attention_bias": True}, "no biases in its attention"),
        ("qwen2", {"rope_parameters": LLAMA3_ROPE}, "no rotary embedding of type llama3"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "cannot rotate"),
        ("llama", {"rope_parameters": YARN | {"truncate": False}}, "cannot rotate"),
        ("qwen2", {"rope_parameters": YARN | {"beta_fast": 16.0}}, "cannot rotate"),
        ("llama", {"eos_token_id": None}, "no token ends its texts"),
        ("llama", {"vocab_size": 300}, "its model 300 embeddings"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_an_error_that_names_it(tmp_path, tokenizer, family, changes, said):
    lm = tiny(family, tokenizer, **changes)
    if "eos_token_id" in changes:
        lm.tokenizer = splitting(QWEN2)
        lm.tokenizer.eos_token = None
    with pytest.raises(UserError, match=said):
        export_gguf(lm, tmp_path / "m.gguf")
    assert not os.listdir(tmp_path)


def test_other_families_adapters_and_types_are_refused(tmp_path, tokenizer, make, monkeypatch):
    out = tmp_path / "m.gguf"
    with pytest.raises(UnsupportedModel, match="causal models of llama, mistral, qwen2, qwen3"):
        export_gguf(load(make("gemma2")), out)
    lm = tiny("llama", tokenizer)
    with pytest.raises(ConfigError, match="f32, f16, bf16, q8_0"):
        export_gguf(lm, out, dtype="q4")
    with pytest.raises(UserError, match=r"has 48 columns, and q8_0 is stored in blocks of 32\n  hint: f16 or bf16"):
        export_gguf(lm, out, dtype="q8_0")
    with pytest.raises(UserError, match="has adapters"):
        export_gguf(new_adapter(lm, PeftOptions(r=2, target_modules=("q_proj",)), seed=0), out)
    monkeypatch.setattr("maypole.models.gguf.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'maypole\[gguf\]'"):
        export_gguf(lm, out)
    assert not out.exists()


def test_a_file_is_replaced_only_when_told_and_whole_or_as_it_was(tmp_path, tokenizer, monkeypatch):
    out, lm = tmp_path / "m.gguf", tiny("llama", tokenizer)
    out.write_text("mine")
    with pytest.raises(ArtifactError, match=r"exists\n  hint: name another --out, or replace it with --force"):
        export_gguf(lm, out)
    with pytest.raises(ArtifactError, match="is a directory"):
        export_gguf(lm, tmp_path)
    with pytest.raises(ArtifactError, match="no such directory"):
        export_gguf(lm, tmp_path / "gone" / "m.gguf")

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gguf.GGUFWriter.write_tensor_data", full)
        with pytest.raises(OSError, match="No space left"):
            export_gguf(lm, out, force=True)
    assert out.read_text() == "mine"
    assert os.listdir(tmp_path) == ["m.gguf"]
    export_gguf(lm, out, force=True)
    assert fields(out)["general.architecture"] == "llama"


def test_the_command_merges_an_adapter_and_writes_one_file(tmp_path, tokenizer, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tiny("llama", tokenizer, intermediate_size=64), tmp_path / "base")
    lm = new_adapter(load(tmp_path / "base"), PeftOptions(r=2, target_modules=("q_proj", "down_proj")), seed=0)
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    save(lm, tmp_path / "adapted")
    assert command("export --model adapted --to gguf --out adapted.gguf --dtype float16") == 0
    assert "adapted.gguf" in capsys.readouterr().out
    down = {t.name: t for t in GGUFReader("adapted.gguf").tensors}["blk.0.ffn_down.weight"]
    wanted = merged(lm).model.state_dict()["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_array_equal(down.data, wanted.half().numpy())
    assert command("export --model base --to gguf-q8_0 --out small.gguf") == 0
    assert Path("small.gguf").stat().st_size < Path("adapted.gguf").stat().st_size
    assert command("export --model base --to gguf --out small.gguf") == 2
    assert command("export --model base --to gguf --out x.gguf --dry-run") == 0
    assert not Path("x.gguf").exists()


def _llama_cpp(path: Path):
    library = pytest.importorskip("llama_cpp", reason="llama.cpp is not here: pip install llama-cpp-python")
    exact = library.GGML_TYPE_F32
    return library.Llama(str(path), n_ctx=256, n_threads=1, verbose=False, type_k=exact, type_v=exact)


def _greedy(lm: LanguageModel, ids: list[int], count: int) -> list[int]:
    made = list(ids)
    with torch.no_grad():
        for _ in range(count):
            made.append(int(lm.model(torch.tensor([made])).logits[0, -1].argmax()))
    return made[len(ids) :]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("mistral", {"head_dim": 16}),
        ("qwen2", {}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        ("llama", {"rope_parameters": YARN}),
        ("qwen3", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    ],
)
def test_llama_cpp_continues_a_prompt_by_the_same_greedy_tokens(tmp_path, tokenizer, family, changes):
    lm = tiny(family, tokenizer, **changes)
    export_gguf(lm, tmp_path / "m.gguf")
    llama = _llama_cpp(tmp_path / "m.gguf")
    prompt = tokenizer(" ".join(TEXTS[:4]))["input_ids"]
    stream = llama.generate(prompt, temp=0.0, repeat_penalty=1.0)
    assert [next(stream) for _ in range(40)] == _greedy(lm, prompt, 40)


@pytest.mark.parametrize("pre", [*TOKENIZERS, "no space before"])
def test_llama_cpp_makes_the_same_tokens_of_awkward_texts(tmp_path, pre):
    tokenizer = TOKENIZERS[pre]() if pre in TOKENIZERS else sentencepiece(add_prefix_space=False)
    export_gguf(tiny("llama", tokenizer), tmp_path / "m.gguf")
    llama = _llama_cpp(tmp_path / "m.gguf")
    for text in TEXTS:
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"], text
