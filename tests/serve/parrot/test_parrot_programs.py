"""Programs on real engines over a tiny model: what they say is what each call by itself would say."""

import asyncio
import random
import threading
from typing import Annotated, Any, Literal

import pytest

from maypole.core.errors import ConfigError, DataError, UserError
from maypole.engine import Engine, EngineConfig, Request, Sampling
from maypole.serve.parrot import (
    Input,
    Output,
    Runtime,
    Session,
    StillWaiting,
    VariableFailed,
    function,
    load_program,
    run_program,
)
from tests.engine.engine_fixtures import hf_greedy, lm_of
from tests.serve.serve_fixtures import app_of, running

LONG: dict[str, Any] = {"max_position_embeddings": 4096}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6}


@function
def shout(text: Input, loud: Output(**GREEDY)):
    """Say it loud: {{text}} !{{loud}}"""


@function
def join(parts: Input, whole: Output(**GREEDY)):
    """All of these
    {{parts}}
    are{{whole}}"""


@function
def twice(a: Input, b: Output(**GREEDY), c: Output(**GREEDY)):
    """{{a}} x {{b}} y {{c}}"""


def drawn(draw: random.Random, calls: int) -> list[tuple[str, list[int]]]:
    """Calls of `join` in a random graph: a text of its own, and the places of those it takes from."""
    beginnings = ["a long beginning that several prompts have in common, ", "", "another one of some length: "]
    return [
        (f"{draw.choice(beginnings)}{n}", draw.sample(range(n), draw.randint(0, min(n, 3)))) for n in range(calls)
    ]


@pytest.mark.parametrize(
    ("engines", "config"),
    [
        (1, EngineConfig()),
        (2, EngineConfig(deterministic=True)),
        (3, EngineConfig(kv_bytes=400_000, max_seqs=4)),
    ],
)
def test_a_program_says_what_rendering_and_generating_call_by_call_says(engines: int, config: EngineConfig):
    lm = lm_of(**LONG)
    program = drawn(random.Random(engines), 30)
    with Session([Engine(lm, config) for _ in range(engines)]) as session:
        made: list[Any] = []
        for text, sources in program:
            made.append(join([text, *(made[at] for at in sources)]))
        found = session.gather(made, "latency")
    expected: list[str] = []
    for text, sources in program:
        prompt = "All of these\n" + "\n".join([text, *(expected[at] for at in sources)]) + "\nare"
        ids = hf_greedy(lm.model, list(lm.tokenizer(prompt)["input_ids"]), 6)
        expected.append(lm.tokenizer.decode(ids, skip_special_tokens=True))
    assert found == expected


def results(session: Session) -> tuple[Any, ...]:
    with session:
        parts = [shout(f"number {n}") for n in range(3)]
        whole = join(parts)
        b, c = twice(whole)
        later = session.variable("later")
        last = shout(later)
        session.flush()
        later.set("done")
        pieces = "".join(shout(last).stream())
        return *session.gather([*parts, whole, b, c], "latency"), last.get(), pieces


def test_a_program_means_the_same_here_and_on_a_server():
    engine = Engine(lm_of(**LONG))
    here = results(Session([engine], seed=3))
    with running(app_of(engine)) as url:
        there = results(Session(url=url, seed=3))
        assert there == here
        through = results(Session([url], seed=3))
    assert through == here


def test_a_program_on_a_server_is_one_exchange_however_many_calls_it_has():
    with running(app_of(Engine(lm_of(**LONG)))) as url, Session(url=url) as session:
        asked: list[str] = []

        async def note(request: Any) -> None:
            asked.append(f"{request.method} {request.url.path.removeprefix('/v1')}")

        session.backend._http.event_hooks["request"].append(note)  # type: ignore[attr-defined]
        last = shout(shout(shout("text")))
        assert last.get("latency")
        assert asked == ["POST /semantic_calls/batch"]
        broken = shout("x" * 5000)
        with pytest.raises(VariableFailed, match="context of 4,096"):
            shout(broken).get()


def test_draws_depend_on_the_seed_of_the_session_and_the_place_of_the_call():
    @function
    def free(text: Input, said: Output(max_tokens=12)):
        """{{text}}:{{said}}"""

    engine = Engine(lm_of(**LONG))

    def said(seed: int) -> list[str]:
        with Session([engine], seed=seed) as session:
            return session.gather([free("a"), free("a")])

    assert said(1) == said(1)
    assert len({*said(1), *said(2)}) == 4


def test_piece_by_piece_what_was_said_goes_on_as_the_tokens_that_it_was():
    engine = Engine(lm_of(**LONG))
    tokenizer = engine.tokenizer
    with Session([engine], tokenize="segment") as session:
        b, c = session.gather(list(twice("abc")))
    ids = [tokenizer.bos_token_id, *tokenizer.encode("abc x ", add_special_tokens=False)]
    greedy = Sampling(**GREEDY)
    first = engine.generate([Request(ids, greedy)])[0]
    said = [i for i in first.token_ids if i not in engine.lm.end_tokens]
    second = engine.generate([Request(ids + said + tokenizer.encode(" y ", add_special_tokens=False), greedy)])[0]
    assert (b, c) == (first.text, second.text)


def test_a_long_beginning_is_computed_once():
    engine = Engine(lm_of(**LONG))

    @function(template="x" * 300 + " {{question}} {{answer}}")
    def ask(question: Input, answer: Output(**GREEDY)): ...

    with Session([engine]) as session:
        ask("first").get()
        session.gather([ask(f"question {n}") for n in range(5)], "latency")
        graph = session.explain()
    assert graph["totals"]["reused_tokens"] >= 5 * 300
    assert {node["engine"] for node in graph["nodes"]} == {"engine 0"}
    assert [node["tokens"]["said"] > 0 for node in graph["nodes"]] == [True] * 6


def test_outputs_are_read_as_their_types_and_the_model_is_held_to_them():
    @function
    def number(text: Input, n: Annotated[int, Output(max_tokens=4)]):
        """{{text}} is {{n}}"""

    side = Annotated[Literal["left", "right"], Output(max_tokens=8)]

    @function
    def choose(text: Input, which: side, yes: Annotated[bool, Output]):
        """{{text}}: {{which}} or {{yes}}"""

    with Session([Engine(lm_of(**LONG))]) as session:
        n, (which, yes) = number("this"), choose("that")
        found = session.gather([n, which, yes])
    assert isinstance(found[0], int)
    assert found[1] in ("left", "right")
    assert isinstance(found[2], bool)


def test_inputs_are_written_as_data():
    @function
    def echo(a: Input, b: Input, c: Input, o: Output(max_tokens=0)):
        """{{a}}{{b}}{{c}}{{o}}"""

    call = echo.call_of  # what is submitted is what is rendered
    with Session([Engine(lm_of(**LONG))]) as session:
        given = [session._given("x", value) for value in (3, True, {"é": [1]}, ["a", "b"])]
    assert [g.text if not isinstance(g, list) else [i.text for i in g] for g in given] == [
        "3", "true", '{"é": [1]}', ["a", "b"]
    ]  # fmt: skip
    made = call({"a": given[3], "b": given[0], "c": given[1]}, "rendered", "session")
    assert made.template == "{{a__0}}\n{{a__1}}{{b}}{{c}}{{o}}"


def test_a_program_may_be_asynchronous():
    async def program() -> list[str]:
        async with Session([Engine(lm_of(**LONG))]) as session:
            one = shout("one")
            pieces = [piece async for piece in one.astream()]
            late = session.variable("late") if False else shout(one)
            return ["".join(pieces), await one.aget(), *await session.agather([late])]

    streamed, whole, after = asyncio.run(program())
    assert streamed == whole
    assert after


def test_a_value_may_come_from_another_thread():
    with Session([Engine(lm_of(**LONG))]) as session:
        document = session.variable("document")
        result = shout(document)
        with pytest.raises(StillWaiting, match="set its inputs: document"):
            result.get(timeout=0.01)
        threading.Timer(0.01, document.set, ["text"]).start()
        assert result.get(timeout=30) == shout("text").get(timeout=30)


def test_an_engine_that_fails_under_a_session_fails_what_depends_on_it_and_nothing_else(monkeypatch):
    engine = Engine(lm_of(**LONG))
    real, failing = engine._runner.step, [False]

    def step(*args: Any, **options: Any) -> Any:
        if failing[0]:
            raise RuntimeError("the device is gone")
        return real(*args, **options)

    monkeypatch.setattr(engine._runner, "step", step)
    with Session([engine]):
        before = shout("before")
        assert before.get()
        failing[0] = True
        broken = shout("broken")
        below = shout(broken)
        with pytest.raises(VariableFailed, match="depends on loud: the engine failed: RuntimeError"):
            below.get()
        failing[0] = False
        assert shout(before).get()
        with pytest.raises(VariableFailed):
            shout(below).get()


def test_a_task_of_an_engine_that_fails_is_done_by_another(monkeypatch):
    lm = lm_of(**LONG)
    bad, good = Engine(lm), Engine(lm)

    def step(*args: Any, **options: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(bad._runner, "step", step)
    with Session([bad, good]) as session:
        variables = [shout(f"{n}") for n in range(4)]
        assert all(session.gather(variables))
        assert {node["engine"] for node in session.explain()["nodes"]} == {"engine 1"}


def test_a_prompt_beyond_the_context_fails_its_variable():
    with Session([Engine(lm_of(max_position_embeddings=64))]), pytest.raises(VariableFailed, match="context of 64"):
        shout("x" * 100).get()


def test_sessions_on_one_runtime_do_not_know_each_other():
    with Runtime([Engine(lm_of(**LONG))]) as runtime:
        with Session(runtime) as one:
            theirs = shout("one")
        with Session(runtime) as two, pytest.raises(UserError, match="another session"):
            shout(theirs)
        with Session(runtime) as three:
            assert shout("three").get()
        assert not runtime.service.sessions
        assert one is not two is not three


def test_what_is_wrong_with_a_function_is_said_when_it_is_made():
    with pytest.raises(DataError, match="function f: x"):

        @function
        def f(x: Input, y: Output):
            """{{y}}"""

    with pytest.raises(ConfigError, match="max-token "):
        Output(**{"max-token ": 3})
    with pytest.raises(DataError, match="cannot be"):

        @function
        def g(x: Input, y: Annotated[set, Output]):
            """{{x}} {{y}}"""

    with pytest.raises(UserError, match="outside of a session"):
        shout("x")
    with pytest.raises(UserError, match="one place to run"):
        Session()
    with pytest.raises(TypeError, match="text"), Session([Engine(lm_of())]):
        shout()


PROGRAM = '''
"""Two calls."""
from maypole.serve.parrot import Input, Output, function

@function
def shout(text: Input, loud: Output(temperature=0, max_tokens=4)):
    """Loud: {{text}} {{loud}}"""

def main(text, times="2"):
    made = [shout(text)]
    for _ in range(int(times) - 1):
        made.append(shout(made[-1]))
    return {"all": made, "last": made[-1], "times": times}
'''


def test_a_program_in_a_file_runs_whole_and_says_what_it_cost(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    engine = Engine(lm_of(**LONG))
    result = run_program(load_program(file), Session([engine]), {"text": "hello", "times": "3"})
    assert result.outputs["times"] == "3"
    assert result.outputs["all"][-1] == result.outputs["last"]
    assert [(call.function, call.objective, call.state) for call in result.calls] == [("shout", "latency", "done")] * 3
    assert result.said_tokens <= 12
    with pytest.raises(UserError, match="arguments: text, times"):
        run_program(load_program(file), Session([engine]), {"texts": "hello"})
    with pytest.raises(UserError, match="no such file"):
        load_program(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="no function main"):
        load_program(tmp_path / "empty.py")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load_program(tmp_path / "broken.py")
