"""The scripts of `benchmarks/`: what can be told of them without running a peer."""

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
FRAME = FOLDER / "side_by_side.py"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "from side_by_side import" in path.read_text()]


def test_most_benchmarks_stand_in_the_frame():
    assert len(SCRIPTS) > 8


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_calls_the_frame_as_it_is(script: Path):
    spec = importlib.util.spec_from_file_location("side_by_side", FRAME)
    assert spec is not None
    assert spec.loader is not None
    frame = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(frame)
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "main"]
    named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    bound = inspect.signature(frame.main).bind(*call.args, **named)
    assert ast.literal_eval(bound.arguments["name"]) == script.stem
