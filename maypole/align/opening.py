"""The model that a command names, with the chat template that it gives. Loads torch only when it is asked."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maypole.core.config import ModelOptions
from maypole.core.errors import UserError

if TYPE_CHECKING:
    from maypole.models.language_model import LanguageModel


def open_model(
    options: ModelOptions,
    chat_template: Path | None,
    *,
    elsewhere: str | None = None,
    task: Literal["causal", "score"] = "causal",
) -> "LanguageModel":
    """`elsewhere` is the device where `options` name none; UserError where the template cannot be read."""
    from maypole.models.loading import load

    assert options.model is not None
    lm = load(
        options.model,
        adapter=options.adapter,
        task=task,
        device=options.device or elsewhere,
        dtype=options.dtype,
        quantization=options.quantization,  # pyright: ignore[reportArgumentType]
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    if chat_template is not None:
        try:
            lm.tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            what = f"cannot be read: {error}"
            raise UserError(what, str(chat_template), "a Jinja template in UTF-8") from error
    return lm
