"""What libraries say during a run goes to a file beside its result. Knows nothing about what they say."""

import logging
from pathlib import Path

_SILENT_PARENTS = ("transformers", "datasets", "peft", "accelerate")


class RunLog(logging.Handler):
    """Appends records of level INFO and above to `path` while attached; a disk that is full never stops the run."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._path = path
        self._attached: list[logging.Logger] = []
        self._raised: list[logging.Logger] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self._path.open("a") as file:
                file.write(self.format(record) + "\n")
        except OSError:
            # The result matters, its log does not: whoever writes the result reports the disk.
            return

    def attach(self) -> None:
        """Listen to everything, also to libraries that keep their records from the root logger."""
        loggers = [logging.getLogger()]
        loggers += [logging.getLogger(n) for n in _SILENT_PARENTS if not logging.getLogger(n).propagate]
        for logger in loggers:
            logger.addHandler(self)
            self._attached.append(logger)
        ours = logging.getLogger("maypole")
        if ours.level == logging.NOTSET:
            ours.setLevel(logging.INFO)
            self._raised.append(ours)

    def detach(self) -> None:
        """Stop listening and leave the loggers as they were."""
        for logger in self._attached:
            logger.removeHandler(self)
        for logger in self._raised:
            logger.setLevel(logging.NOTSET)
        self._attached, self._raised = [], []
        self.close()
