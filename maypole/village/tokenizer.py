"""The village's tokenizer: byte-level BPE in which every world word is one token after a space, and a chat template.

One digit is one token, nothing is normalised, and no space is added: texts start with one themselves. Knows no model.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from maypole.village.instruct import HELD_OUT_TASKS, LABELS
from maypole.village.names import all_words
from maypole.village.phrases import H3_FRAMES, HQ_QUESTION, WORDS
from maypole.village.render import render
from maypole.village.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
RESERVED = [f"<|x{i}|>" for i in range(25)]
SPECIAL_TOKENS = [PAD, BOS, EOS, SYSTEM, USER, ASSISTANT, END, *RESERVED]
"""32 special tokens, ids 0 to 31 in this order; x0 to x24 are free for placeholders."""
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- set space = '' if message['content'].startswith(' ') else ' ' -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- space + message['content'] + '<|end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- space + message['content'] + '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
CORPUS: dict[str, int] = {
    "page": 1200, "facts": 800, "ledger": 400, "qa": 700, "hop2": 400, "hop3": 300, "instruct": 2600, "story": 300,
    "calendar": 200, "topic": 150, "web": 500, "icl": 200, "rep": 150,
}  # fmt: skip
"""How many documents of each kind the vocabulary is learned from."""
WORD_REPEATS = 60


def document(row: dict) -> str:
    """A row as one text: its text, or its turns one after the other, each after a space."""
    if "messages" in row:
        return "".join(f" {turn['content']}" for turn in row["messages"])
    return row["text"]


def village_corpus(world: World) -> Iterator[str]:
    """What the vocabulary is learned from: documents of every kind, then every word on its own many times, among them
    the words that only held-out phrasings use."""
    for kind, count in CORPUS.items():
        for row in render(world, kind, count, seed=world.seed):
            yield document(row)
    phrasings = [text for task in HELD_OUT_TASKS for text in task.phrasings]
    words = [*all_words(), *LABELS, *(noun for nouns in WORDS.values() for noun in nouns)]
    for _ in range(WORD_REPEATS):
        yield " " + " ".join(words)
    for text in (*phrasings, *H3_FRAMES, HQ_QUESTION):
        yield " " + text


def mixed_corpus(world: World, prose: Iterable[str] | None, ratio: float = 1.5) -> Iterator[str]:
    """The village's corpus, then `ratio` times as many characters of prose."""
    characters = 0
    for text in village_corpus(world):
        characters += len(text)
        yield text
    allowed = int(characters * ratio)
    for text in prose or ():
        if allowed <= 0:
            return
        allowed -= len(text)
        yield text


def train_tokenizer(
    world: World, vocab_size: int = 2048, prose: Iterable[str] | None = None
) -> "PreTrainedTokenizerFast":
    """Learn the vocabulary. With `prose` (any texts, read as far as needed) 4096 entries suit both.

    Text is encoded as `<|bos|>` + pieces (`add_special_tokens=False` leaves bos away); chats go through the template,
    whose generation marks cover each answer and its `<|end|>`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(mixed_corpus(world, prose), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, END, *RESERVED],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
