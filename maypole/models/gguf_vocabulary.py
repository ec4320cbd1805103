"""A fast tokenizer in llama.cpp's terms, or an error that says which part of it llama.cpp has no word for.

llama.cpp knows two kinds that matter here: byte-level BPE, whose way of splitting text has a name, and SentencePiece
BPE, whose merges are ranked by the scores of their results. Knows nothing about weights or files.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from maypole.core.errors import UserError
from maypole.models.language_model import LanguageModel

log = logging.getLogger(__name__)

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "smaug-bpe",
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (_CASED, True): "tekken",
}
"""(the regex that splits text, whether whole words skip the merges) -> llama.cpp's name for both."""

_SPACE = "▁"
_GENERATION = re.compile(r"{%(-?)\s*(end)?generation\s*(-?)%}")


class TokenType(IntEnum):
    """What llama.cpp does with a token; the numbers are GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says about tokens: one text and type an embedding; `special` is name -> id (bos, eos, eot …)."""

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float]
    merges: list[str]
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    space_prefix: bool | None
    chat_template: str | list[dict[str, str]] | None


def vocabulary_of(lm: LanguageModel, rows: int) -> Vocabulary:
    """The tokenizer of `lm` for a model of `rows` embeddings. UserError names what llama.cpp cannot represent."""
    tokenizer: Any = lm.tokenizer
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _cannot("it is not a fast tokenizer, whose parts can be read")
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model["type"] != "BPE":
        raise _cannot(f"a {model['type']} model")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _cannot("dropout, or marks at the ends of words")
    tokens, types = _tokens(tokenizer, rows)
    add_bos, add_eos = _framing(tokenizer)
    chat_template = _chat_template(tokenizer.chat_template)
    common = {"special": _special(lm), "add_bos": add_bos, "add_eos": add_eos, "chat_template": chat_template}
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        types = _sentencepiece_types(tokens, types, model.get("unk_token"))
        tokens = [t.replace(_SPACE, " ") if k == TokenType.USER_DEFINED else t for t, k in zip(tokens, types)]
        scores = _scores(model["vocab"], merges, tokens)
        prefix = _space_prefix(whole)
        return Vocabulary("llama", "default", tokens, types, scores, [], **common, space_prefix=prefix)
    if not merges:
        raise _cannot("a vocabulary of bytes without merges")
    pre = _pre_tokenizer(whole, bool(model.get("ignore_merges")))
    return Vocabulary("gpt2", pre, tokens, types, [], [" ".join(m) for m in merges], **common, space_prefix=None)


def _cannot(what: str) -> UserError:
    hint = "export_gguf(lm, out, tokenizer=False) writes a file that is used by token ids"
    return UserError(f"its tokenizer has what llama.cpp cannot represent: {what}", expected=hint)


def _tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[TokenType]]:
    texts = {index: text for text, index in tokenizer.get_vocab().items()}
    if max(texts) >= rows:
        raise UserError(f"its tokenizer has a token {max(texts)}, its model {rows} embeddings", expected="one of each")
    added = tokenizer.added_tokens_decoder
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(rows)]
    types = [TokenType.NORMAL if i in texts else TokenType.UNUSED for i in range(rows)]
    for index, token in added.items():
        if token.lstrip or token.rstrip or token.single_word:
            raise _cannot(f"the token {token.content!r}, which takes the spaces beside it or stands alone")
        types[index] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        tokens[index] = token.content
    return tokens, types


def _framing(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a text gets the bos token before it, and the eos token behind it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before, behind in ((False, False), (True, False), (False, True), (True, True)):
        if framed == bos * before + plain + eos * behind:
            return before, behind
    raise _cannot(f"special tokens around a text other than bos and eos: {tokenizer.convert_ids_to_tokens(framed)}")


def _special(lm: LanguageModel) -> dict[str, int]:
    """Ids by GGUF's names; the tokens that end a completion become eos, eot and eom."""
    tokenizer: Any = lm.tokenizer
    ends = [i for i in lm.end_tokens if i != tokenizer.eos_token_id]
    if tokenizer.eos_token_id is not None:
        ends = [tokenizer.eos_token_id, *ends]
    if len(ends) > 3:
        raise _cannot(f"{len(ends)} tokens that end a completion; it has room for 3")
    named = {"bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    return {k: int(v) for k, v in {**named, **dict(zip(("eos", "eot", "eom"), ends))}.items() if v is not None}


def _chat_template(template: Any) -> str | list[dict[str, str]] | None:
    """Without the marks around what an assistant says, which only trainers read; space is trimmed as it was."""
    if isinstance(template, dict):
        return [{"name": name, "template": str(_chat_template(text))} for name, text in template.items()]
    return template and _GENERATION.sub(lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", template)


def _pre_tokenizer(whole: dict[str, Any], ignore_merges: bool) -> str:
    """llama.cpp's name for the way in which a byte-level tokenizer splits text."""
    normalizer = whole.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _cannot(f"a {normalizer['type']} normalizer")
    if normalizer is not None:
        log.warning("llama.cpp does not compose characters (NFC) as this tokenizer does: send it composed text")
    steps = _steps(whole.get("pre_tokenizer"))
    level = steps[-1] if steps else {}
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space"):
        raise _cannot("text that is not taken as bytes, or gets a space before it")
    kinds = [step["type"] for step in steps[:-1]]
    if level.get("use_regex", True) and not ignore_merges:
        if not kinds:
            return "gpt-2"
        if kinds == ["Digits"] and steps[0]["individual_digits"]:
            return "smollm"
    if kinds == ["Split"] and steps[0]["behavior"] == "Isolated" and not level.get("use_regex", True):
        regex = steps[0]["pattern"].get("Regex", "")
        if (regex, ignore_merges) in _SPLITS:
            return _SPLITS[regex, ignore_merges]
        raise _cannot(f"text split by {regex!r}")
    raise _cannot(f"text split by {' and '.join([*kinds, 'ByteLevel'])} as set there")


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    inside = part.get("pretokenizers") or part.get("normalizers")
    return [part] if inside is None else [step for each in inside for step in _steps(each)]


def _sentencepiece_types(tokens: list[str], types: list[TokenType], unknown: str | None) -> list[TokenType]:
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - set(tokens)
    if missing:
        raise _cannot(f"no token for the byte {min(missing)}")
    made = [TokenType.BYTE if re.fullmatch("<0x[0-9A-F]{2}>", t) else kind for t, kind in zip(tokens, types)]
    return [TokenType.UNKNOWN if t == unknown else kind for t, kind in zip(tokens, made)]


def _scores(vocab: dict[str, int], merges: Sequence[tuple[str, ...]], tokens: list[str]) -> list[float]:
    """The rank of the merge that makes a token, negated: SentencePiece merges whatever makes the best-scored token."""
    pairs, ranks = set(merges), dict[str, int]()
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    for token in vocab:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair[0] in vocab and pair[1] in vocab and pair not in pairs and not _is_marked(token):
                raise _cannot(f"{token!r} is not merged from {pair[0]!r} and {pair[1]!r}, as SentencePiece would")
    return [-float(ranks.get(token, 0)) for token in tokens]


def _is_marked(token: str) -> bool:
    """Byte tokens and special ones are found by other means than merging."""
    return token.startswith("<") and token.endswith(">")


def _space_prefix(whole: dict[str, Any]) -> bool:
    """Whether a text begins with a space; the two ways in which SentencePiece's spaces are written in tokenizers."""
    before, after = _steps(whole.get("normalizer")), _steps(whole.get("pre_tokenizer"))
    if not before and len(after) == 1 and after[0]["type"] == "Metaspace" and not after[0].get("split", True):
        if after[0]["prepend_scheme"] == "never":
            return False
        log.warning("llama.cpp puts a space before texts that begin with one, and after special tokens, too")
        return True
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not after and before and before[-1] == spaces:
        if len(before) == 1:
            return False
        if before[:-1] == [{"type": "Prepend", "prepend": _SPACE}]:
            return True
    raise _cannot("spaces written in another way than SentencePiece does")
