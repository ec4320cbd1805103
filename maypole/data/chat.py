"""Messages, prompts and texts become token ids with the weight that the loss gives to each.

The loss of a chat falls on every assistant turn, its end token included. A completion starts where the tokens of the
prompt and of prompt + completion first differ, so a token that straddles the border is learnt and never half a prompt.
`weights[i]` belongs to predicting ``ids[i]``; the first token has nothing before it and always weighs 0.
Knows nothing about files, batches or models.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2

from maypole.core.errors import DataError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Talk = str | Sequence[Message]

PROMPT_FILLS = "prompt fills max_length"
EMPTY_COMPLETION = "empty completion"
NO_ASSISTANT = "no assistant turn"
_GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row and the weight of each in the loss: 1 where it is learnt, 0 where it is context."""

    ids: list[int]
    weights: list[float]

    @property
    def start(self) -> int:
        """Index of the first token with loss; for a completion this is the length of its prompt."""
        return next(i for i, weight in enumerate(self.weights) if weight)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that cannot teach anything, and why; callers count them by reason."""

    reason: str


def encode_text(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of a document: BOS if the tokenizer adds one, then the text, then EOS once (if the tokenizer has one)."""
    return _end(_tokens(text, tokenizer), tokenizer)


def encode_prompt(prompt: Talk, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that a completion continues: a string as it is, messages by the template with its generation prompt."""
    if isinstance(prompt, str):
        return _tokens(prompt, tokenizer)
    return _tokens_of_rendered(render(prompt, tokenizer, add_generation_prompt=True), tokenizer)


def encode_completion(
    prompt: Talk, completion: Talk, tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> Encoded | Dropped:
    """Ids of prompt + completion with the loss on the completion.

    Strings are joined as they are and EOS is appended once. If either is a list of messages the template is used: a
    string prompt becomes a user turn, a string completion an assistant turn, the loss falls on the assistant turns of
    the completion, and the row ends as the template ends an assistant turn. What exceeds `max_length` is cut on the
    right.
    """
    if _is_empty(completion):
        return Dropped(EMPTY_COMPLETION)
    if isinstance(prompt, str) and isinstance(completion, str):
        before, ids = encode_prompt(prompt, tokenizer), _end(_tokens(prompt + completion, tokenizer), tokenizer)
        start = _common_prefix(before, ids)
        return _cut(ids, [float(i >= start) for i in range(len(ids))], max_length)
    context, answer = _as_messages(prompt, "user"), _as_messages(completion, "assistant")
    return _encode_turns([*context, *answer], len(context), tokenizer, max_length)


def encode_whole(prompt: Talk, completion: Talk, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of prompt + completion to be read as one text, for whoever judges it; an empty completion counts as one.

    Joined and ended as `encode_completion` does it.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return _end(_tokens(prompt + completion, tokenizer), tokenizer)
    messages = [*_as_messages(prompt, "user"), *_as_messages(completion, "assistant")]
    return _tokens_of_rendered(render(messages, tokenizer), tokenizer)


def encode_begun(prompt: Talk, beginning: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that `encode_prompt` gives with the `beginning` of an answer after them."""
    if isinstance(prompt, str):
        return _tokens(prompt + beginning, tokenizer)
    return _tokens_of_rendered(render(prompt, tokenizer, add_generation_prompt=True) + beginning, tokenizer)


def encode_chat(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> Encoded | Dropped:
    """Ids of a conversation with the loss on every assistant turn, its end token included.

    Turns are found by the template's ``{% generation %}`` marks. A template without marks is rendered up to the start
    and the end of each assistant turn instead; one that rewrites earlier turns (so that these are no prefixes of the
    whole) is an error, because no training row could then look like what the model sees when it answers.
    """
    return _encode_turns(messages, 0, tokenizer, max_length)


def _encode_turns(
    messages: Sequence[Message], first: int, tokenizer: "PreTrainedTokenizerBase", max_length: int | None
) -> Encoded | Dropped:
    """The whole conversation, with the loss on the assistant's turns from message `first` on."""
    turns = [i for i in range(first, len(messages)) if messages[i].get("role") == "assistant"]
    if not turns:
        return Dropped(NO_ASSISTANT)
    if all(_is_empty([messages[i]]) for i in turns):
        return Dropped(EMPTY_COMPLETION)
    if _GENERATION_MARK.search(_template(tokenizer)):
        ids, weights = _by_marks(messages, tokenizer)
        if first:
            start = _common_prefix(encode_prompt(messages[:first], tokenizer), ids)
            weights[:start] = [0.0] * start
    else:
        ids, weights = _by_prefixes(messages, turns, tokenizer)
    return _cut(ids, weights, max_length)


def render(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool = False
) -> str:
    """The conversation as the tokenizer's template writes it; UserError without one, DataError if it refuses."""
    _template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise _refused(error) from error
    return str(text)


def _template(tokenizer: "PreTrainedTokenizerBase") -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template, and the rows hold messages",
            where=str(tokenizer.name_or_path or ""),
            expected="give one with --chat-template FILE, or use rows with string prompts and completions",
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            f"no default chat template: {error}", expected="choose one with --chat-template FILE"
        ) from error


def _refused(error: Exception) -> DataError:
    roles = "most templates want user and assistant in turn, after at most one system message"
    return DataError(f"the chat template cannot render this conversation: {error}", field="messages", expected=roles)


def _as_messages(talk: Talk, role: str) -> list[Message]:
    return [{"role": role, "content": talk}] if isinstance(talk, str) else list(talk)


def _is_empty(talk: Talk) -> bool:
    if isinstance(talk, str):
        return not talk
    return not any(message.get("content") or message.get("tool_calls") for message in talk)


def _tokens(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of a plain string, without the EOS that some tokenizers add and without a BOS doubled by the text's own."""
    encoding: Any = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, added = list(encoding["input_ids"]), encoding["special_tokens_mask"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if ids and added[-1] and ids[-1] == eos and not (len(ids) == 1 and bos == eos):
        ids.pop()
    if len(ids) > 1 and ids[0] == ids[1] == bos:
        del ids[0]
    return ids


def _tokens_of_rendered(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    encoding: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    return list(encoding["input_ids"])


def _end(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    eos: Any = tokenizer.eos_token_id
    return ids if eos is None or (ids and ids[-1] == eos) else [*ids, eos]


def _by_marks(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[float]]:
    try:
        encoding: Any = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise _refused(error) from error
    ids, marked = list(encoding["input_ids"]), [bool(m) for m in encoding["assistant_masks"]]
    end_token = _end_token(messages, ids, marked, tokenizer)
    weights = [0.0] * len(ids)
    for start, end in _runs(marked):
        end = _without_trailing_space(ids, end, tokenizer)
        if end < len(ids) and ids[end] == end_token:
            end += 1
        weights[start:end] = [1.0] * (end - start)
    return ids, weights


def _end_token(
    messages: Sequence[Message], ids: list[int], marked: list[bool], tokenizer: "PreTrainedTokenizerBase"
) -> int | None:
    """The special token that the template puts after an assistant turn but outside its marks, if it does so."""
    last = max(i for i, message in enumerate(messages) if message.get("role") == "assistant")
    if last + 1 < len(messages):
        ids = ids[: _common_prefix(_tokens_of_rendered(render(messages[: last + 1], tokenizer), tokenizer), ids)]
    end = max((i + 1 for i in range(len(ids)) if marked[i]), default=0)
    special = _special_ids(tokenizer, len(tokenizer))
    return ids[end] if 0 < end < len(ids) and ids[end] in special and ids[end - 1] not in special else None


def _runs(marked: list[bool]) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive marked tokens."""
    edges = [i for i in range(len(marked) + 1) if (i < len(marked) and marked[i]) != (i > 0 and marked[i - 1])]
    return list(zip(edges[::2], edges[1::2]))


def _by_prefixes(
    messages: Sequence[Message], turns: list[int], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[float]]:
    text = render(messages, tokenizer)
    ids = _tokens_of_rendered(text, tokenizer)
    weights = [0.0] * len(ids)
    for turn in turns:
        upto = render(messages[: turn + 1], tokenizer)
        before = render(messages[:turn], tokenizer, add_generation_prompt=True) if turn else _opening(upto, tokenizer)
        if not (text.startswith(before) and text.startswith(upto)):
            raise DataError(
                f"the chat template writes the conversation up to message {turn + 1} otherwise than the whole one, "
                "so the answer's tokens cannot be told apart",
                field="messages",
                expected="mark assistant turns with {% generation %} ... {% endgeneration %} in a template "
                "given with --chat-template FILE",
            )
        start = _common_prefix(_tokens_of_rendered(before, tokenizer), ids)
        end = _without_trailing_space(ids, _common_prefix(_tokens_of_rendered(upto, tokenizer), ids), tokenizer)
        weights[start:end] = [1.0] * (end - start)
    return ids, weights


def _opening(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """What stands before the words of a conversation that an assistant opens (templates render no empty one)."""
    question = [{"role": "user", "content": "?"}]
    header = render(question, tokenizer, add_generation_prompt=True).removeprefix(render(question, tokenizer))
    return text[: text.index(header) + len(header)] if header and header in text else ""


def _without_trailing_space(ids: list[int], end: int, tokenizer: "PreTrainedTokenizerBase") -> int:
    """`end` moved back over the line breaks that templates write after an end token: no model has to say those."""
    special = _special_ids(tokenizer, len(tokenizer))
    last = end
    while last and ids[last - 1] not in special and str(tokenizer.decode([ids[last - 1]])).isspace():
        last -= 1
    return last if last and ids[last - 1] in special else end


@lru_cache(maxsize=8)
def _special_ids(tokenizer: "PreTrainedTokenizerBase", size: int) -> frozenset[int]:
    """Ids of special tokens; `size` is the vocabulary's, so that tokens added later are seen."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _common_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _cut(ids: list[int], weights: list[float], max_length: int | None) -> Encoded | Dropped:
    ids, weights = ids[:max_length], weights[:max_length]
    if weights:
        weights[0] = 0.0
    return Encoded(ids, weights) if any(weights) else Dropped(PROMPT_FILLS)
