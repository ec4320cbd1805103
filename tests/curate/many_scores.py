"""A program that selects from a folder's scores, each file taken so many times; prints its counts and peak memory."""

import resource
import sys
from pathlib import Path

from maypole.curate.perplexity_pruning.scores import Origin, Scores
from maypole.curate.perplexity_pruning.selection import select

if __name__ == "__main__":
    folder, times = Path(sys.argv[1]), int(sys.argv[2])
    paths = sorted(folder.glob("*.parquet")) * times
    origin = Origin(model="m", max_length=9, max_tokens=None, name="s", source="s")
    scores = Scores(tuple(paths), (origin,) * len(paths))
    selection = select(scores, criterion="medium", rate=0.5)
    documents = kept = 0
    for part in scores.parts(ids=True):
        documents, kept = documents + len(part), kept + int(selection.keep(part).sum())
    print(documents, kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
