"""Sum up a long text: every part by itself, all of them at once, then the whole from what was said of the parts.

    maypole serve program examples/summary.py --model base --arg text="$(cat story.txt)"
"""

from maypole.serve.parrot import Input, Output, function


@function
def sum_up(part: Input, sentence: Output(max_tokens=32, temperature=0)):
    """What a part of a story tells, in one sentence.

    Part: {{part}}
    Sentence:{{sentence}}"""


@function
def tell(sentences: Input, summary: Output(max_tokens=64, temperature=0)):
    """The parts of a story, a sentence each:
    {{sentences}}
    The whole story:{{summary}}"""


def main(text: str, characters: str = "1000"):
    """Nothing waits here: `sentences` are variables, which get their values while the calls run."""
    size = int(characters)
    sentences = [sum_up(text[at : at + size]) for at in range(0, len(text), size)]
    return {"sentences": sentences, "summary": tell(sentences)}
