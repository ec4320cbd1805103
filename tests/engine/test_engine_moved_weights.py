"""An engine that owns its model moves the weights it repacks: no memory twice, the state readable, updates exact."""

from pathlib import Path
from typing import Any

import pytest
import torch

from maypole.core.errors import UserError
from maypole.engine import Engine, EngineConfig, Request, Sampling
from maypole.models.loading import load
from maypole.models.saving import save
from tests.engine.engine_fixtures import hf_greedy, lm_of, with_adapters

NO_COPIES = EngineConfig(repack_bytes=1)
GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
PROMPT = [5, 6, 7, 8, 9]


def said(engine: Engine) -> list[int]:
    return engine.generate([Request(PROMPT, GREEDY)])[0].token_ids


def stored(module: torch.nn.Module) -> int:
    """Bytes that the Parameters of a module hold."""
    return sum(p.nbytes for p in module.parameters() if p.device.type != "meta")


@pytest.fixture(params=["llama", "gpt2", "qwen3"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    lm = lm_of(request.param)
    save(lm, tmp_path / "model")
    return lm, tmp_path / "model"


def test_a_loaded_engine_holds_every_weight_once(saved: tuple[Any, Path]):
    lm, path = saved
    engine = Engine.load(path, config=NO_COPIES)
    assert said(engine) == hf_greedy(lm.model, PROMPT, 12)
    whole = stored(lm.model)
    assert engine.stats()["repacked_bytes"] > whole / 3
    assert stored(engine.lm.model) + engine.stats()["repacked_bytes"] == whole
    assert stored(engine._runner.module) == stored(engine.lm.model)


def test_its_module_still_tells_its_state(saved: tuple[Any, Path], tmp_path: Path):
    lm, path = saved
    engine = Engine.load(path)
    state = engine.lm.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.model.state_dict().items())
    save(engine.lm, tmp_path / "again")
    assert hf_greedy(load(tmp_path / "again").model, PROMPT, 12) == hf_greedy(lm.model, PROMPT, 12)


def test_a_state_dict_in_part_or_whole_replaces_what_it_names(saved: tuple[Any, Path]):
    lm, path = saved
    new = lm_of(lm.transformer.config.model_type, seed=1)
    engine = Engine.load(path, config=NO_COPIES)
    said(engine)
    names = [name for name in new.model.state_dict() if ".1." in name]
    part = {name: new.model.state_dict()[name] for name in names}
    engine.update(part)
    lm.model.load_state_dict(part, strict=False)
    assert said(engine) == hf_greedy(lm.model, PROMPT, 12)
    assert stored(engine.lm.model) + engine.stats()["repacked_bytes"] == stored(lm.model)
    wrong = {next(iter(part)): torch.zeros(1, 2, 3)}
    with pytest.raises(UserError, match="same architecture"):
        engine.update(wrong)
    assert said(engine) == hf_greedy(lm.model, PROMPT, 12)
    engine.update(new.model.state_dict())
    assert said(engine) == hf_greedy(new.model, PROMPT, 12)
    assert engine.lm.fingerprint is None


def test_an_engine_given_a_model_leaves_it_whole_also_after_it_had_loaded_one(saved: tuple[Any, Path]):
    lm, path = saved
    engine = Engine.load(path)
    engine.update(lm)
    assert said(engine) == hf_greedy(lm.model, PROMPT, 12)
    assert all(p.device.type == "cpu" for p in lm.model.parameters())
    engine.update(path)
    assert any(p.device.type == "meta" for p in engine.lm.model.parameters())
    assert said(engine) == hf_greedy(lm.model, PROMPT, 12)


def test_adapters_are_read_before_and_after_the_weights_under_them_moved(tmp_path: Path):
    lm = with_adapters(lm_of("llama"), "a")
    lm.name = str(tmp_path / "base")
    save(lm_of("llama"), tmp_path / "base")
    save(lm.with_adapter("a"), tmp_path / "a")
    wanted = hf_greedy(lm.model, PROMPT, 12)
    assert said(Engine.load(tmp_path / "a")) == wanted
    engine = Engine.load(tmp_path / "base", adapters={"a": tmp_path / "a"})
    assert engine.generate([Request(PROMPT, GREEDY, adapter="a")])[0].token_ids == wanted


def test_a_model_whose_weights_moved_serves_no_other_engine(saved: tuple[Any, Path]):
    engine = Engine.load(saved[1])
    with pytest.raises(UserError, match="have moved into an engine"):
        Engine(engine.lm)


def test_with_no_bytes_for_repacking_nothing_moves(saved: tuple[Any, Path]):
    lm, path = saved
    engine = Engine.load(path, config=EngineConfig(repack_bytes=0))
    assert stored(engine.lm.model) == stored(lm.model)
    assert said(engine) == hf_greedy(lm.model, PROMPT, 12)
