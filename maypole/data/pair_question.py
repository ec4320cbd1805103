"""Which of two answers is better: the question as a language model reads it, and the letters it may answer with.

A model is trained and asked with the same one, so it is kept beside the weights. Knows nothing about models.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maypole.core.errors import DataError, UserError
from maypole.data.chat import Message, Talk, encode_begun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "pair_question.json"
_BLANK = re.compile(r"\{(context|a|b)\}")


@dataclass(frozen=True, slots=True)
class PairQuestion:
    """`text` with blanks for {context}, {a} and {b} (default: that of 2405.07863), and the two letters.

    `chat`: the question is a user's message, rendered by the tokenizer's template; else it is plain text.
    """

    text: str = "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
    first: str = "A"
    second: str = "B"
    chat: bool = True

    def __post_init__(self) -> None:
        if sorted(_BLANK.findall(self.text)) != ["a", "b", "context"]:
            raise UserError("the question must have each blank once", repr(self.text), "{context}, {a} and {b}")
        if not self.first or not self.second or self.first == self.second:
            raise UserError("the question's letters must be two", f"{self.first!r}, {self.second!r}")

    def words(self, prompt: Talk, a: Talk, b: Talk) -> str:
        """The question about answers `a` and `b` to `prompt`, blanks filled in."""
        filled = {"context": _turns(prompt), "a": _answer(a), "b": _answer(b)}
        return _BLANK.sub(lambda blank: filled[blank[1]], self.text)

    def encode(
        self, prompt: Talk, a: Talk, b: Talk, tokenizer: "PreTrainedTokenizerBase"
    ) -> tuple[list[int], tuple[int, int]]:
        """The question's ids, and the ids of the two letters that may follow them.

        UserError where the tokenizer cannot tell the two apart by one token.
        """
        if self.chat and not tokenizer.chat_template:
            raise UserError("the question is asked as a chat, and the tokenizer has no template for one")
        words = self.words(prompt, a, b)
        asked: Talk = [{"role": "user", "content": words}] if self.chat else words
        first, second = (encode_begun(asked, letter, tokenizer) for letter in (self.first, self.second))
        if len(first) < 2 or len(first) != len(second) or first[:-1] != second[:-1] or first[-1] == second[-1]:
            what = f"the tokenizer does not write {self.first!r} and {self.second!r} as one token each"
            raise UserError(what, expected="other letters for the question")
        return first[:-1], (first[-1], second[-1])

    def write(self, directory: Path) -> None:
        """Keep it beside the weights of the model that was trained with it."""
        fields = {"text": self.text, "letters": [self.first, self.second], "chat": self.chat}
        (directory / FILE).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "PairQuestion":
        """What `write` kept; UserError where that is not there or not whole."""
        file = directory / FILE
        try:
            fields = json.loads(file.read_text())
            first, second = fields["letters"]
            return cls(str(fields["text"]), str(first), str(second), bool(fields["chat"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError("cannot be read", str(file), "what `align reward --type pair` wrote") from error


def _turns(talk: Talk) -> str:
    """A conversation as plain text, as the question's authors write it."""
    messages: list[Message] = [{"role": "user", "content": talk}] if isinstance(talk, str) else list(talk)
    return "\n" + "".join(f"\n<turn> {m['role']}\n {_content(m)}" for m in messages) + "\n"


def _answer(talk: Talk) -> str:
    if isinstance(talk, str):
        return talk
    return _content(talk[0]) if len(talk) == 1 else _turns(talk)


def _content(message: Message) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise DataError("a pair question takes text only", field="messages", expected='a string as "content"')
    return content
