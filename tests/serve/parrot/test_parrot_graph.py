import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maypole.core.errors import DataError
from maypole.serve.parrot.calls import Call, Of, Ref, Value, Wanted, in_order
from maypole.serve.parrot.graph import AlreadySet, Graph, Task
from maypole.serve.parrot.objectives import GROUP, LATENCY, THROUGHPUT
from maypole.serve.parrot.pictures import dot, edge, node


def call(*sources: str | int | Ref) -> Call:
    """One output `o` made from texts, outputs of other calls of the submission by place, and variables."""
    made = {f"i{n}": Value(s) if isinstance(s, str) else s if isinstance(s, Ref) else Of(s, "o")
            for n, s in enumerate(sources)}  # fmt: skip
    return Call(template="x" + "".join(f"{{{{{n}}}}}" for n in made) + "y{{o}}", inputs=made, outputs={"o": Wanted()})


def tasks_of(*sources: tuple[int, ...]) -> tuple[Graph, list[Task]]:
    """One task for each tuple of the places it takes from."""
    graph = Graph("g")
    return graph, [tasks[0] for tasks in graph.add([call(*some) for some in sources])]


def objectives(tasks: list[Task]) -> list[str]:
    return [task.objective.name for task in tasks]


def test_a_chain_that_is_wanted_soon_is_all_latency():
    graph, tasks = tasks_of((), (0,), (1,), (2,))
    graph.want(tasks[-1].output, "latency")
    assert objectives(tasks) == ["LATENCY"] * 4
    assert [task.depth for task in tasks] == [1, 2, 3, 4]


def test_the_maps_of_a_map_reduce_are_one_group():
    graph, tasks = tasks_of((), (), (), (0, 1, 2))
    changed = graph.want(tasks[-1].output, "latency")
    assert objectives(tasks) == ["GROUP"] * 3 + ["LATENCY"]
    assert [group.tasks for group in tasks[0].groups] == [tasks[:3]]
    assert set(changed) == set(tasks)
    assert graph.want(tasks[-1].output, "latency") == []


def test_the_source_of_a_diamond_is_latency():
    graph, tasks = tasks_of((), (0,), (0,), (1, 2))
    graph.want(tasks[-1].output, "latency")
    assert objectives(tasks) == ["LATENCY", "GROUP", "GROUP", "LATENCY"]


def test_chains_side_by_side_are_a_group_at_every_stage():
    graph, tasks = tasks_of((), (), (0,), (1,), (2, 3))
    graph.want(tasks[-1].output, "latency")
    assert objectives(tasks) == ["GROUP"] * 4 + ["LATENCY"]
    assert [group.tasks for group in tasks[0].groups] == [tasks[:2]]


def test_a_producer_shared_by_two_consumers_is_in_both_groups():
    graph, tasks = tasks_of((), (), (), (0, 1), (1, 2))
    graph.want(tasks[3].output, "latency")
    graph.want(tasks[4].output, "latency")
    assert [group.tasks for group in tasks[1].groups] == [[tasks[0], tasks[1]], [tasks[1], tasks[2]]]


def test_a_later_wish_for_latency_changes_what_was_for_throughput():
    graph, tasks = tasks_of((), (0,), (0,))
    assert graph.want(tasks[1].output, "throughput") == []
    assert objectives(tasks) == ["THROUGHPUT"] * 3
    graph.want(tasks[1].output, "latency")
    assert objectives(tasks) == ["LATENCY", "LATENCY", "THROUGHPUT"]


def test_a_task_that_another_of_its_group_waits_for_alone_is_latency():
    graph, tasks = tasks_of((), (0,), (0, 1))
    graph.want(tasks[2].output, "latency")
    assert objectives(tasks) == ["LATENCY", "GROUP", "LATENCY"]


def deduced_by_rules(tasks: list[Task], result: Task) -> dict[Task, set[str]]:
    """The rules of deduction applied to everything until nothing new comes of it."""
    hurried, groups = {result}, set()
    while True:
        found, grouped = set(hurried), set(groups)

        def stage(together, found=found, grouped=grouped):
            if len(together) == 1:
                found.update(together)
            elif together:
                grouped.add(frozenset(together))

        for task in hurried:
            stage(task.predecessors)
        for group in groups:
            for member in group:
                if len(member.predecessors) > 1:
                    grouped.add(frozenset(member.predecessors))
            stage({p for member in group if len(member.predecessors) == 1 for p in member.predecessors})
        if (found, grouped) == (hurried, groups):
            break
        hurried, groups = found, grouped
    return {
        task: LATENCY if task in hurried else GROUP if any(task in g for g in groups) else THROUGHPUT for task in tasks
    }


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_deduction_equals_its_rules_applied_until_nothing_changes(seed):
    draw = random.Random(seed)
    sources = [tuple(draw.sample(range(n), draw.randint(0, min(n, 3)))) for n in range(draw.randint(1, 12))]
    graph, tasks = tasks_of(*sources)
    wanted = draw.sample(tasks, draw.randint(1, min(3, len(tasks))))
    for result in wanted:
        graph.want(result.output, "latency")
    each = [deduced_by_rules(tasks, result) for result in wanted]
    assert {t: t.objective for t in tasks} == {t: max(found[t] for found in each) for t in tasks}


def test_several_outputs_of_a_call_are_tasks_in_a_row():
    made = Call(
        template="{{a}} x {{b}} y {{c}} z {{d}}", inputs={"a": Value("1")},
        outputs={name: Wanted() for name in ("b", "c", "d")},
    )  # fmt: skip
    b, c, d = Graph("g").add([made])[0]
    assert [b.fills, c.fills, d.fills] == [("1", " x "), (" y ",), (" z ",)]
    assert (b.previous, c.previous, d.previous) == (None, b, c)
    assert [task.missing for task in (b, c, d)] == [0, 1, 1]
    assert c.predecessors == [b]


def test_a_task_is_ready_when_the_last_of_its_sources_is_set():
    graph = Graph("g")
    one, two = graph.variable("one"), graph.variable("two")
    task = graph.add([call(Ref(one.id), Ref(two.id), Ref(one.id))])[0][0]
    assert task.missing == 2
    assert graph.set(one, "1") == []
    assert task.output.unset == [two]
    assert graph.set(two, "2") == [task]
    with pytest.raises(AlreadySet, match="variable two"):
        graph.set(two, "3")


def test_a_failure_reaches_all_that_depends_on_it_and_nothing_else():
    graph, tasks = tasks_of((), (), (0,), (2, 1), (1,))
    failed = graph.fail(tasks[0].output, "no engine")
    assert [v.producer for v in failed] == [tasks[0], tasks[2], tasks[3]]
    assert [t.state for t in tasks] == ["failed", "waiting", "failed", "failed", "waiting"]
    error = tasks[3].output.error
    assert error is not None
    assert error.cause == "depends on o: no engine"
    late = graph.add([call(Ref(tasks[3].output.id))])[0][0]
    assert late.state == "failed"


@pytest.mark.parametrize(
    ("calls", "row", "field"),
    [
        ([call(1), call(0)], 1, "i0"),
        ([call(), call(1)], 2, "i0"),
        ([call(5)], 1, "i0"),
        ([call(Ref("var-of-somebody-else"))], 1, "i0"),
        ([call(), Call(template="no hole")], 2, "template"),
        ([Call(template="a {{o}}", outputs={"o": Wanted(transforms=("eval:x",))})], 1, "o"),
    ],
)
def test_a_wrong_submission_is_refused_whole(calls, row, field):
    graph = Graph("g")
    with pytest.raises(DataError) as caught:
        graph.add(calls)
    assert (caught.value.row, caught.value.field) == (row, field)
    assert not graph.tasks
    assert not graph.variables


def test_calls_may_take_from_later_ones_of_their_submission():
    _, tasks = tasks_of((1, 2), (2,), ())
    assert [task.depth for task in tasks] == [3, 2, 1]


def test_pictures_show_no_contents():
    graph = Graph("g")
    secret = graph.variable("input")
    graph.set(secret, "SECRET")
    task = graph.add([call(Ref(secret.id), "SECRET")])[0][0]
    document = {"nodes": [node(task)], "edges": [edge(variable) for variable in graph.variables.values()]}
    assert "SECRET" not in str(document) + dot(document)
    assert node(task)["column"] == 0
    assert '"' + secret.id + '" -> "' + task.id + '" [label="input"]' in dot(document)


def test_calls_keep_their_order_but_for_what_they_take_from_each_other():
    assert in_order([call(2), call("x"), call("x"), call("x")]) == [1, 2, 3, 0]


def test_a_variable_that_gets_another_consumer_has_changed():
    changed: list[object] = []
    graph = Graph("s", changed.append)
    variable = graph.variable("a")
    changed.clear()
    graph.add([call(Ref(variable.id))])
    assert variable in changed
