"""The nine stages of a customisation life, in order, and which of them a tour has. Data; knows no stage's work."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageInfo:
    """`does` completes "This stage …"; `built` False: the tour does not have it yet."""

    number: int
    name: str
    does: str
    built: bool = False

    @property
    def directory(self) -> str:
        """Name of its artifact in the tour's folder."""
        return f"{self.number:02}-{self.name}"


STAGES = (
    StageInfo(1, "curate", "chooses and cleans the texts to learn from", built=True),
    StageInfo(2, "adapt", "trains the model on the corpus, then on instructions", built=True),
    StageInfo(3, "align", "trains the model on judged answers of its own", built=True),
    StageInfo(4, "edit", "corrects facts in its weights"),
    StageInfo(5, "interpret", "looks inside the model"),
    StageInfo(6, "compress", "makes the model smaller and quicker"),
    StageInfo(7, "retrieve", "grounds its answers in documents"),
    StageInfo(8, "serve", "answers requests with the model", built=True),
    StageInfo(9, "evaluate", "measures the model before and after", built=True),
)
BY_NAME = {stage.name: stage for stage in STAGES}
