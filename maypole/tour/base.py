"""What a tour starts from: the small base that ships, or a model of the user's. Knows nothing about stages."""

from dataclasses import dataclass
from pathlib import Path

from maypole.core.errors import UserError
from maypole.core.identity import identity
from maypole.models.language_model import LanguageModel
from maypole.models.loading import load
from maypole.village.zoo import SHIPPED

SHIPPED_BASE = "village-4M-prose"


def reference() -> LanguageModel:
    """The small model by which the texts of every tour are chosen: a fresh copy of the base that ships."""
    return load(SHIPPED / SHIPPED_BASE)


@dataclass(frozen=True, slots=True)
class Base:
    """A model as it was before the tour. `own`: it is maypole's, so what it was pretrained on is at hand."""

    place: str
    own: bool

    @classmethod
    def of(cls, model: str | None) -> "Base":
        """The base that ships for None, else the directory or hub id; UserError for an adapter directory."""
        if model is None:
            return cls(str(SHIPPED / SHIPPED_BASE), True)
        if (Path(model) / "adapter_config.json").is_file():
            raise UserError("is an adapter, and a tour starts from a whole model", model, "maypole models merge")
        return cls(model, False)

    @property
    def name(self) -> str:
        """As a reader would say it: no absolute path."""
        return Path(self.place).resolve().name if Path(self.place).is_dir() else self.place

    @property
    def threads(self) -> int | None:
        """How many suit it; None: as many as there are. The base that ships is so small that a second one adds a
        fourth to its speed on an idle machine, and takes three fourths where other work wants the core."""
        return 1 if self.own else None

    @property
    def identity(self) -> str:
        """Of the weights; a hub id stands for itself."""
        return str(identity(self.place))

    def load(self) -> LanguageModel:
        """A fresh copy in memory."""
        return load(self.place)
