"""The applications that Parrot is measured on, as graphs of calls, and the two ways to run one: whole, or call by call.

A program is a list of calls with one output, `o`, each; texts come from a seed. Knows no engine.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from maypole.core.seeds import derive
from maypole.engine.request import Sampling
from maypole.serve.parrot.calls import CacheScope, Call, Criteria, Given, Of, Value, Wanted
from maypole.serve.parrot.service import Service
from maypole.serve.parrot.template import Hole, Text, parse

Program = list[Call]
Ask = Callable[[Call, str], Awaitable[str]]
"""What a client has: a prompt goes out, its completion comes back."""
_WORDS = (
    "well", "mill", "bees", "bridge", "garden", "river", "stone", "apple", "market", "winter", "lantern", "harbour",
    "letter", "candle", "window", "forest", "baker", "teacher", "sailor", "shepherd", "morning", "evening", "silver",
    "wooden", "quiet", "narrow", "bright", "heavy", "opens", "carries", "mends", "paints", "counts", "follows", "the",
    "remembers", "borrows", "a", "of", "near", "under", "behind", "and", "then", "because",
)  # fmt: skip


def words(count: int, seed: int, *names: str | int) -> str:
    """So many words, drawn anew for each place."""
    return " ".join(_WORDS[derive(seed, "word", *names, n) % len(_WORDS)] for n in range(count))


def call(
    name: str, template: str, tokens: int, inputs: Mapping[str, Given], scope: CacheScope = "session"
) -> Call:  # fmt: skip
    """A call of so many tokens, greedy, whatever the model would end at."""
    outputs = {"o": Wanted(Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True))}
    return Call(template=f"{template}{{{{o}}}}", inputs=inputs, outputs=outputs, name=name, cache_scope=scope)


def chain(parts: Sequence[str], tokens: int) -> Program:
    """Every part is summed up with what was said of those before it."""
    made = [call("begin", "Part: {{part}}\nSummary:", tokens, {"part": Value(parts[0])})]
    for n, part in enumerate(parts[1:]):
        template = "Before: {{before}}\nPart: {{part}}\nSummary:"
        made.append(call("go on", template, tokens, {"before": Of(n, "o"), "part": Value(part)}))
    return made


def map_reduce(parts: Sequence[str], tokens: int) -> Program:
    """Every part is summed up by itself, and then all summaries together."""
    made = [call("map", "Part: {{part}}\nSummary:", tokens, {"part": Value(part)}) for part in parts]
    holes = "\n".join(f"{{{{s{n}}}}}" for n in range(len(parts)))
    sources: dict[str, Given] = {f"s{n}": Of(n, "o") for n in range(len(parts))}
    return [*made, call("reduce", f"Summaries:\n{holes}\nSummary of all:", tokens, sources)]


def shared_prompts(systems: Sequence[str], questions: Sequence[str], tokens: int) -> Program:
    """Applications with a long system prompt each, and users who ask them in turn."""
    return [
        call("answer", f"{systems[n % len(systems)]}\nUser: {{{{question}}}}\nAnswer:", tokens,
             {"question": Value(question)}, "public")
        for n, question in enumerate(questions)
    ]  # fmt: skip


def agents(task: str, files: int, rounds: int, tokens: Sequence[int]) -> Program:
    """Coders write a file each; then in every round all is reviewed file by file, and every coder writes anew.

    Prompts of a stage begin with the task and all files as they are; `tokens` are those of code and of a review.
    """
    code, review = tokens
    made = [call("write", f"{task}\nFile {{{{n}}}}:\n", code, {"n": Value(str(n))}) for n in range(files)]
    latest = list(range(files))
    everything = task + "".join(f"\nFile {n}:\n{{{{f{n}}}}}" for n in range(files))
    for _ in range(rounds):
        sources: dict[str, Given] = {f"f{n}": Of(at, "o") for n, at in enumerate(latest)}
        begin = len(made)
        for n in range(files):
            asked = {**sources, "n": Value(str(n))}
            made.append(call("review", everything + "\nReview of {{n}}:", review, asked))
        for n in range(files):
            asked = {**sources, "n": Value(str(n)), "said": Of(begin + n, "o")}
            made.append(call("revise", everything + "\nAnew {{n}}, after {{said}}:", code, asked))
        latest = [begin + files + n for n in range(files)]
    return made


def results(program: Program) -> list[int]:
    """Places of the calls that no other takes from."""
    taken = {given.call for made in program for given in made.inputs.values() if isinstance(given, Of)}
    return [at for at in range(len(program)) if at not in taken]


async def whole(service: Service, program: Program, criteria: Criteria = "latency") -> list[str]:
    """Every output, the program given to the service at once; only the results are waited for."""
    session = service.open(seed=0)
    try:
        tasks = [made[0] for made in service.submit(session, program)]
        wanted = [service.get(session, tasks[at].output, criteria) for at in results(program)]
        await asyncio.gather(*wanted)
        return [task.output.content or "" for task in tasks]
    finally:
        service.close(session)


async def one_by_one(program: Program, ask: Ask) -> list[str]:
    """Every output, each call rendered and asked for by a client as soon as it knows what goes into it."""
    asked: list[asyncio.Task[str]] = []

    async def run(made: Call) -> str:
        pieces: list[str] = []
        for piece in parse(made.template):
            if isinstance(piece, Text):
                pieces.append(piece.text)
            elif isinstance(piece, Hole) and piece.name in made.inputs:
                given = made.inputs[piece.name]
                pieces.append(given.text if isinstance(given, Value) else await asked[_place(given)])
        return await ask(made, "".join(pieces))

    for made in program:  # which take from earlier ones only
        asked.append(asyncio.ensure_future(run(made)))
    return list(await asyncio.gather(*asked))


def _place(given: Given) -> int:
    assert isinstance(given, Of)
    return given.call
