"""lm-evaluation-harness asks the server and gets the scores that it gets in process."""

from pathlib import Path
from typing import Any

import datasets
import pytest

import maypole
from maypole.engine import Engine
from maypole.models import load
from maypole.serve.app import create_app
from maypole.village import World
from maypole.village.draws import Draws
from maypole.village.questions import qa
from tests.serve.serve_fixtures import running

lm_eval = pytest.importorskip("lm_eval", reason="not installed: make setup-bench, or pip install 'lm-eval[api]'")

BASE = Path(maypole.__file__).parent / "village" / "base" / "village-1M"


def _questions(count: int) -> datasets.Dataset:
    """What people of the village are asked, each with its answer and three answers to other questions."""
    world = World()
    asked = [qa(world, Draws(7, i)) for i in range(4 * count)]
    rows = []
    for i in range(count):
        choices = list(dict.fromkeys(row["answers"][0] for row in asked[i::count]))
        rows.append({"question": asked[i]["question"], "choices": choices, "label": 0, "answer": choices[0]})
    return datasets.Dataset.from_list(rows)


def _task(kind: str, count: int) -> Any:
    from lm_eval.api.task import ConfigurableTask

    asked = {"test": _questions(count)}
    shared = {"task": kind, "custom_dataset": lambda **_: asked, "test_split": "test", "doc_to_text": "{{question}}"}
    if kind == "multiple_choice":
        more: dict[str, Any] = {"doc_to_choice": "choices", "doc_to_target": "label", "target_delimiter": " "}
        return ConfigurableTask(config={**shared, **more, "output_type": kind})
    more = {"doc_to_target": "answer", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}}
    return ConfigurableTask(config={**shared, **more, "output_type": kind})


def _evaluated(lm: Any, task: Any) -> tuple[dict[str, Any], list[Any]]:
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=lm, tasks=[task], bootstrap_iters=0, log_samples=True, task_manager=TaskManager(include_defaults=False)
    )
    (results,), (samples,) = found["results"].values(), found["samples"].values()
    numbers = {name: value for name, value in results.items() if isinstance(value, float)}
    return numbers, [sample["filtered_resps"] for sample in samples]


@pytest.mark.parametrize(("tokenizer_backend", "bos"), [("huggingface", True), ("remote", False)])
def test_tasks_have_the_same_scores_as_in_process(tokenizer_backend: str, bos: bool):
    """With the client's own tokenizer and with the server's, before which lm-eval puts no BOS."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    lm = load(BASE, dtype="float32")
    here = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, backend="causal", batch_size=8, add_bos_token=bos)
    with running(create_app(Engine(lm), name="base")) as url:
        there = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions", model="base", tokenizer_backend=tokenizer_backend,
            tokenizer=None if tokenizer_backend == "remote" else str(BASE),
            batch_size=8, max_length=512, max_retries=1, revision=None, add_bos_token=bos,
        )  # fmt: skip
        for kind, count in (("multiple_choice", 20), ("generate_until", 4)):
            (mine, said), (theirs, expected) = (_evaluated(model, _task(kind, count)) for model in (there, here))
            assert mine == pytest.approx(theirs, abs=1e-9)
            if kind == "generate_until":
                assert said == expected
                continue
            for ours, other in zip(said, expected, strict=True):
                assert [p for p, _ in ours] == pytest.approx([p for p, _ in other], abs=1e-4)
                assert [greedy for _, greedy in ours] == [greedy for _, greedy in other]
