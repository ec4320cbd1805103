"""llama.cpp through its batch API: greedy completions of several sequences of token ids at once.

The bindings' own `Llama` class runs one sequence at a time; this uses what they wrap. Knows nothing about maypole.
"""

# pyright: reportArgumentType=false, reportMissingImports=false
# The bindings' types say of every pointer that it may be null; they come with the extra `bench` alone.

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

BATCH = 512
"""Tokens that one decode call takes at most."""


class LlamaCpp:
    """One model file and a context for `sequences` sequences of `length` tokens.

    `unified` keeps all sequences in one buffer, so that a copied prefix is shared; `flash` is llama.cpp's flash
    attention, `exact` holds keys and values in fp32 instead of llama.cpp's usual fp16.
    """

    def __init__(self, file: Path, *, sequences: int, length: int, unified: bool, flash: bool, exact: bool) -> None:
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = sequences * (-(-length // 256) * 256)
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = 1
        settings.kv_unified = unified
        settings.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        if exact:
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, settings) if model else None
        if self._context is None:
            raise RuntimeError(f"llama.cpp could not open {file}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def generate(self, prompts: Sequence[Sequence[int]], new: int, *, shared: int = 0) -> list[list[int]]:
        """`new` greedy tokens after each prompt; the first `shared` tokens, the same in all, are read once."""
        llama_cpp.llama_memory_clear(self._memory, False)
        if shared:
            self._read([(0, at, token) for at, token in enumerate(prompts[0][:shared])])
            for sequence in range(1, len(prompts)):
                llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        rest = [(s, at, token) for s, prompt in enumerate(prompts) for at, token in enumerate(prompt) if at >= shared]
        ends = {s: len(prompt) - 1 for s, prompt in enumerate(prompts)}
        tokens = self._read(rest, ends)
        said = [[tokens[s]] for s in range(len(prompts))]
        for step in range(new - 1):
            here = {s: len(prompt) + step for s, prompt in enumerate(prompts)}
            tokens = self._read([(s, here[s], said[s][-1]) for s in here], here)
            for s, token in tokens.items():
                said[s].append(token)
        return said

    def _read(self, entries: Sequence[tuple[int, int, int]], ends: dict[int, int] | None = None) -> dict[int, int]:
        """Decode (sequence, position, token) entries; the best next token of each sequence that ends here."""
        found: dict[int, int] = {}
        for a in range(0, len(entries), BATCH):
            chunk = entries[a : a + BATCH]
            batch = self._batch
            batch.n_tokens = len(chunk)
            for i, (sequence, position, token) in enumerate(chunk):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = ends is not None and ends[sequence] == position
            if llama_cpp.llama_decode(self._context, batch) != 0:
                raise RuntimeError("llama.cpp could not decode the batch")
            for i, (sequence, position, _) in enumerate(chunk):
                if ends is not None and ends[sequence] == position:
                    row = llama_cpp.llama_get_logits_ith(self._context, i)
                    found[sequence] = int(np.ctypeslib.as_array(row, shape=(self._vocabulary,)).argmax())
        return found
