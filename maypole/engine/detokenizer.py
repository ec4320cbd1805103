"""Token ids become text as they come, whole characters only, and end before a stop string. Knows no model.

A text cut at any token may end inside a character or inside a stop string; such an end is held back until it is clear
what it is, so that what was shown never has to be taken back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_INCOMPLETE = "\ufffd"


@dataclass(slots=True)
class Detokenizer:
    """The text of one completion.

    `text` is what is certain so far, `emitted` how many characters of it were handed out, `stopped_by` the stop string
    that ended it.
    """

    tokenizer: Any
    stop: Sequence[str] = ()
    skip_special_tokens: bool = True
    ids: list[int] = field(default_factory=list)
    text: str = ""
    emitted: int = 0
    stopped_by: str | None = None
    _start: int = 0
    _read: int = 0

    def push(self, token: int) -> bool:
        """Add a token; True when a stop string is now complete and the text ends before it."""
        self.ids.append(token)
        # What precedes a token may decide about its space, so the window starts one clean cut earlier.
        before = self._decode(self.ids[self._start : self._read])
        both = self._decode(self.ids[self._start :])
        if len(both) <= len(before) or both.endswith(_INCOMPLETE):
            return False
        known = len(self.text)
        self.text += both[len(before) :]
        self._start, self._read = self._read, len(self.ids)
        return self._find_stop(known)

    def take(self) -> str:
        """The characters that became certain since the last call."""
        end = len(self.text) if self.stopped_by is not None else len(self.text) - self._held_back()
        piece = self.text[self.emitted : end]
        self.emitted = max(self.emitted, end)
        return piece

    def finish(self) -> str:
        """Everything not yet handed out; afterwards `text` is the whole completion."""
        if self.stopped_by is None:
            whole = self._decode(self.ids)
            known = len(self.text)
            self.text = whole if whole.startswith(self.text) else self.text
            self._find_stop(known)
        piece = self.text[self.emitted :]
        self.emitted = len(self.text)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=self.skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def _find_stop(self, known: int) -> bool:
        found = [(at, text) for text in self.stop if (at := self.text.find(text, max(0, known - len(text) + 1))) >= 0]
        if not found:
            return False
        at, self.stopped_by = min(found, key=lambda pair: (pair[0], -len(pair[1])))
        self.text = self.text[:at]
        return True

    def _held_back(self) -> int:
        """Length of the longest end of the text that may become a stop string."""
        longest = 0
        for stop in self.stop:
            for n in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:n]):
                    longest = n
                    break
        return longest
