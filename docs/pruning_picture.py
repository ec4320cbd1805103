"""The picture of docs/systems/perplexity-pruning.md: ``python docs/pruning_picture.py``.

2,000 documents of the village's small web are scored by its 1M model and the middle half is kept. The numbers behind
the picture are stored too, so that a test can draw it again.
"""

import json
import sys
import tempfile
from pathlib import Path

from maypole.curate.corpus import open_corpus
from maypole.curate.perplexity_pruning import Scores, prune, score
from maypole.village.draws import Draws
from maypole.village.web import web
from maypole.village.world import World
from maypole.village.zoo import load_zoo

DOCS = Path(__file__).parent
IMAGE, NUMBERS = DOCS / "images" / "perplexity-pruning.svg", DOCS / "results" / "pictures" / "perplexity-pruning.json"
DOCUMENTS = 2000
DRAWN = ("histogram", "composition")
"""What of a report is in the picture and in the sentence above it."""


def main() -> int:
    world = World(0)
    rows = [{"id": str(i), **web(world, Draws(1, "picture", i), "web")} for i in range(DOCUMENTS)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "web.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        corpus = open_corpus([file])
        scores = Scores.open(score(load_zoo("village-1M"), corpus, out=Path(folder, "scores")).path)
        kept = prune(corpus, scores, out=Path(folder, "kept")).path
        report = json.loads((kept / "report.json").read_text())
        IMAGE.write_text((kept / "nll.svg").read_text())
    NUMBERS.parent.mkdir(exist_ok=True)
    NUMBERS.write_text(json.dumps({name: report[name] for name in DRAWN}) + "\n")
    for line in report["composition"]:
        shares = (f"{line[name]:.0%}" for name in ("documents_share", "kept_documents_share"))
        print(line["domain"], *shares)
    return 0


if __name__ == "__main__":
    sys.exit(main())
