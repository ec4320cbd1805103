"""A causal language model as one GGUF file, for llama.cpp and what is built on it. Knows nothing about running it.

Whatever llama.cpp would compute otherwise than transformers is an error that names it, never left out.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from maypole.core.atomic import whole_file
from maypole.core.errors import ArtifactError, ConfigError, MissingExtra, UnsupportedModel, UserError
from maypole.models.gguf_vocabulary import Vocabulary, vocabulary_of
from maypole.models.language_model import LanguageModel

log = logging.getLogger(__name__)

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
"""How matrices are stored; norms and biases are always fp32."""

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type -> the name of the architecture in llama.cpp."""

_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_FLOAT32 = np.dtype(np.float32)  # what a tensor's shape counts in, whatever is stored


def export_gguf(
    lm: LanguageModel, out: str | Path, *, dtype: GgufType = "f32", tokenizer: bool = True, force: bool = False
) -> None:
    """Write `lm` to the file `out`, whole or not at all, one tensor in memory at a time.

    `tokenizer=False` leaves the vocabulary out: such a file is used by token ids alone. UserError names what of the
    model or its tokenizer llama.cpp cannot represent; ArtifactError where `out` exists and `force` is not given.
    """
    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "writing GGUF files")
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    if dtype not in get_args(GgufType):
        raise ConfigError("dtype", dtype, get_args(GgufType))
    if lm.adapters:
        raise UserError("has adapters, which a GGUF file has no place for", lm.name, "merged(lm), or: models merge")
    path = Path(out)
    check_file(path, force)
    arch = _architecture(lm)
    tensors = list(_tensors(lm, arch, GGMLQuantizationType[dtype.upper()], GGML_QUANT_SIZES))
    embeddings: Any = lm.transformer.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    vocabulary = vocabulary_of(lm, rows) if tokenizer else None
    with whole_file(path) as part:
        writer = GGUFWriter(part, arch)
        try:
            _write_parameters(writer, lm, rows, _FILE_TYPES[dtype])
            _write_vocabulary(writer, vocabulary)
            for tensor in tensors:
                writer.add_tensor_info(tensor.name, tensor.source.shape, _FLOAT32, tensor.bytes, raw_dtype=tensor.type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(quantize(tensor.values(), tensor.type))
        finally:
            writer.close()


def check_file(out: Path, force: bool) -> None:
    """ArtifactError unless `out` can become a file: it is free in a directory that exists, or may be replaced."""
    if out.is_dir():
        raise ArtifactError("is a directory", str(out), "a file, such as model.gguf")
    if out.exists() and not force:
        raise ArtifactError("exists", str(out), "name another --out, or replace it with --force")
    if not out.parent.is_dir():
        raise ArtifactError("no such directory", str(out.parent), "make it first, or name another --out")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor under llama.cpp's name; `heads` where its rows are reordered for llama.cpp's rotary embedding."""

    name: str
    source: torch.Tensor
    type: Any
    bytes: int
    heads: int = 0

    def values(self) -> Any:
        """fp32 on the CPU. transformers rotates the halves of a head, llama.cpp's "llama" neighbouring pairs."""
        values = self.source.detach().to("cpu", torch.float32)
        if self.heads:
            halves = values.reshape(self.heads, 2, values.shape[0] // self.heads // 2, *values.shape[1:])
            values = halves.transpose(1, 2).reshape(values.shape)
        return values.contiguous().numpy()


def _architecture(lm: LanguageModel) -> str:
    model: Any = lm.transformer
    config = model.config
    if config.model_type not in ARCHITECTURES or model.get_output_embeddings() is None:
        raise UnsupportedModel(
            config.model_type, "a way into a GGUF file", f"causal models of {', '.join(ARCHITECTURES)}"
        )
    if lm.quantization:
        raise UserError(f"its weights are held as {lm.quantization} already", lm.name, "load it without quantization")
    if config.hidden_act != "silu":
        raise UserError(f"llama.cpp has no {config.hidden_act!r} activation for this family", lm.name, "silu")
    if config.model_type == "qwen3" and config.attention_bias:
        raise UserError("llama.cpp's qwen3 has no biases in its attention", lm.name, "attention_bias false")
    if not lm.end_tokens and lm.tokenizer.eos_token_id is None:
        raise UserError("no token ends its texts, and llama.cpp would take another", lm.name, "set an eos token")
    return ARCHITECTURES[config.model_type]


def _tensors(lm: LanguageModel, arch: str, kind: Any, sizes: Any) -> Iterator[_Tensor]:
    """Every weight of the model, and the factors of Llama 3's rotary embedding."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    model: Any = lm.transformer
    config = model.config
    of = next(key for key, name in MODEL_ARCH_NAMES.items() if name == arch)
    names = get_tensor_name_map(of, config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    reordered = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if arch == "llama" else {}
    for key, source in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UnsupportedModel(config.model_type, f"a place for {key} in a GGUF file")
        heads = next((n for part, n in reordered.items() if part in key), 0)
        yield _tensor(name, source, kind if source.ndim > 1 else type(kind).F32, sizes, heads)
    if _rope(config)["rope_type"] == "llama3":
        yield _tensor("rope_freqs.weight", _rope_factors(config, arch), type(kind).F32, sizes)


def _tensor(name: str, source: torch.Tensor, kind: Any, sizes: Any, heads: int = 0) -> _Tensor:
    block, size = sizes[kind]
    if source.shape[-1] % block:
        what = f"{name} has {source.shape[-1]} columns, and {kind.name.lower()} is stored in blocks of {block}"
        raise UserError(what, expected="f16 or bf16")
    return _Tensor(name, source, kind, source.numel() // block * size, heads)


def _write_parameters(writer: Any, lm: LanguageModel, rows: int, file_type: str) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType

    config: Any = lm.transformer.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type(GGUFType.MODEL)
    writer.add_name(Path(lm.name).name)
    writer.add_file_type(LlamaFileType[file_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(_context(lm))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(rows)
    writer.add_rope_dimension_count(head)
    _write_rope(writer, config, lm.name)


def _context(lm: LanguageModel) -> int:
    """Positions; where layers see a window only, its length: llama.cpp's builds of these families see everything."""
    config: Any = lm.transformer.config
    kinds = getattr(config, "layer_types", None)
    windowed = config.model_type == "mistral" if kinds is None else "sliding_attention" in kinds
    window = getattr(config, "sliding_window", None) if windowed else None
    if window is None or window >= lm.max_length:
        return lm.max_length
    log.warning("the context is written as %s tokens, its attention window: llama.cpp has none here", f"{window:,}")
    return int(window)


def _rope(config: Any) -> dict[str, Any]:
    found = dict(config.rope_parameters)
    return {"rope_type": "default", **found}


def _write_rope(writer: Any, config: Any, name: str) -> None:
    from gguf import RopeScalingType

    rope = _rope(config)
    kind = rope["rope_type"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("only a part of each head is rotated, which llama.cpp does not do here", name)
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn" and _is_yarn_of_llama_cpp(rope):
        _, attention = ROPE_INIT_FUNCTIONS["yarn"](config)
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        # llama.cpp multiplies what is written here by the usual factor
        writer.add_rope_scaling_attn_factors(attention / (1 + 0.1 * math.log(rope["factor"])))
    elif kind not in ("default", "llama3"):
        raise UserError(f"llama.cpp cannot rotate positions as {rope} says", name, "default, linear, yarn, llama3")


def _is_yarn_of_llama_cpp(rope: dict[str, Any]) -> bool:
    """Whether these are the settings that llama.cpp reads for our families, the others as it takes them for granted."""
    usual = (rope.get("beta_fast") or 32) == 32 and (rope.get("beta_slow") or 1) == 1 and rope.get("truncate", True)
    return bool(usual and rope.get("factor"))


def _rope_factors(config: Any, arch: str) -> torch.Tensor:
    """(head_dim / 2,) What each frequency of the plain rotary embedding is divided by."""
    if arch != "llama":
        raise UserError(f"llama.cpp's {arch} has no rotary embedding of type llama3", expected="default, linear, yarn")
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    half = torch.arange(0, 2 * len(scaled), 2, dtype=torch.float32) / (2 * len(scaled))
    return 1.0 / config.rope_parameters["rope_theta"] ** half / scaled


def _write_vocabulary(writer: Any, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, index in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
