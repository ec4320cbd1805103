import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maypole.core.errors import DataError
from maypole.serve.parrot.template import NAME, Chain, Hole, Text, chains, parse
from maypole.serve.parrot.transforms import TransformFailed, transform_of

names = st.from_regex(NAME, fullmatch=True)
texts = st.text().filter(lambda text: "{{" not in text and not text.startswith("{") and not text.endswith(("{", "}")))
pieces = st.lists(st.one_of(names.map(Hole), texts.map(Text)))


@given(pieces)
def test_a_template_is_split_as_a_regular_expression_splits_it(made):
    template = "".join(f"{{{{{p.name}}}}}" if isinstance(p, Hole) else p.text for p in made)
    split = re.split(r"\{\{([a-zA-Z_][a-zA-Z0-9_]*)\}\}", template)
    expected = [Hole(part) if i % 2 else Text(part) for i, part in enumerate(split) if i % 2 or part]
    assert list(parse(template)) == expected


@pytest.mark.parametrize("template", ["{{1a}}", "{{}}", "a {{ x }}", "{{a-b}}"])
def test_double_braces_around_what_is_no_name_are_an_error(template):
    with pytest.raises(DataError, match="no hole"):
        parse(template)


def test_several_outputs_are_chains_that_follow_each_other():
    found = chains(parse("{{a}} x {{b}} y {{c}} tail"), ["a"], ["b", "c"])
    assert found == (Chain((Hole("a"), Text(" x ")), "b"), Chain((Text(" y "),), "c"))


@pytest.mark.parametrize(
    ("template", "inputs", "outputs", "field"),
    [
        ("a {{x}}", [], [], "x"),
        ("a {{x}} b {{y}}", ["x", "z"], ["y"], "z"),
        ("a {{y}} b {{y}}", [], ["y"], "y"),
        ("a {{x}}{{y}}", [], ["x", "y"], "y"),
        ("{{y}}", [], ["y"], "y"),
        ("a {{x}}", ["x"], [], "template"),
        ("a {{x}}", ["x"], ["x"], "x"),
    ],
)
def test_holes_that_do_not_fit_their_parameters_are_named(template, inputs, outputs, field):
    with pytest.raises(DataError) as caught:
        chains(parse(template), inputs, outputs)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("specs", "text", "expected"),
    [
        (["strip"], "  a b \n", "a b"),
        (["first_line"], "\n  first \nsecond", "first"),
        (["json_field:/a/1/b~1c"], '{"a": [0, {"b/c": "x"}]}', "x"),
        (["json_field:"], '{"a": [1, "é"]}', '{"a": [1, "é"]}'),
        (["regex:score: (\\d+)#1"], "The score: 12 of 20; score: 3", "12"),
        (["regex:(?i)YES|no#0"], "no\nyes", "no"),
        (["split:, [-1]"], "a, b, c", "c"),
        (["strip", "split:[[1]", "regex:(a(b))#2"], " x[ab ", "b"),
    ],
)
def test_transforms(specs, text, expected):
    assert transform_of(specs, "out")(text) == expected


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("json_field:/a", "no JSON"), ("json_field:/a", "[1]"), ("json_field:/01", "[1, 2]"),
        ("json_field:/a", "[" * 100_000), ("regex:a#0", "b"), ("split:,[3]", "a,b"),
    ],
)  # fmt: skip
def test_a_text_that_a_transform_does_not_take_fails_it(spec, text):
    with pytest.raises(TransformFailed, match=re.escape(spec[:10])):
        transform_of([spec], "out")(text)


@pytest.mark.parametrize(
    "spec",
    ["eval:1", "strip ", "regex:(#0", "regex:a#1", "regex:(?=a)a#0", "regex:a", "split:x", "json_field:a", "x" * 5000,
     "regex:\ud800#0", "regex:((a{1000}){1000}){1000}#0"],
)  # fmt: skip
def test_what_is_not_in_the_list_of_transforms_is_refused(spec):
    with pytest.raises(DataError, match="no transform"):
        transform_of([spec], "out")


def test_a_regular_expression_takes_linear_time_on_the_text_it_was_made_to_hang_on():
    with pytest.raises(TransformFailed):
        transform_of(["regex:(a+)+$#1"], "out")("a" * 100_000 + "b")
