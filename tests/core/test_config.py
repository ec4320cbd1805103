from dataclasses import dataclass
from pathlib import Path

import pytest

from maypole.core.config import (
    ModelOptions,
    RunOptions,
    from_yaml,
    input_fields,
    key_fields,
    pass_on,
    required,
    setting,
    to_yaml,
)
from maypole.core.errors import ConfigError, UserError


@dataclass(frozen=True, kw_only=True)
class Peft:
    type: str = setting("lora")
    r: int = setting(8)
    target_modules: tuple[str, ...] | None = setting(None)


@dataclass(frozen=True, kw_only=True)
class Train:
    learning_rate: float = setting(1e-3)
    save_steps: int = setting(100, key=False)
    peft: Peft | None = setting(None)


@dataclass(frozen=True, kw_only=True)
class Config(ModelOptions, RunOptions):
    data: tuple[str, ...] = setting(input=True, help="rows")
    mix: tuple[float, ...] = setting(())
    train: Train = setting(factory=Train)

    def __post_init__(self) -> None:
        if any(weight <= 0 for weight in self.mix):
            raise ConfigError("mix", self.mix, "numbers above 0")
        pass_on(Config, self)


FULL = Config(
    model="base",
    data=("a.jsonl", "b.parquet"),
    mix=(3.0, 1.0),
    out=Path("o"),
    train=Train(learning_rate=0.001, peft=Peft(target_modules=("q_proj",))),
)


@pytest.mark.parametrize("config", [FULL, Config(data=())])
def test_a_config_survives_yaml(config, tmp_path):
    assert from_yaml(Config, to_yaml(config)) == config
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert from_yaml(Config, tmp_path / "c.yaml") == config


def test_yaml_numbers_written_as_people_write_them_are_numbers():
    assert from_yaml(Train, "learning_rate: 1e-4").learning_rate == 1e-4
    assert type(from_yaml(Train, "learning_rate: 1").learning_rate) is float


def test_an_unknown_setting_is_named_with_those_that_are_known():
    with pytest.raises(UserError, match=r"no setting is called 'lr'\n  hint: known: learning_rate, save_steps, peft"):
        from_yaml(Train, "lr: 1")
    with pytest.raises(UserError, match="expected a mapping of settings, found list"):
        from_yaml(Train, "[1]")


def test_the_key_leaves_out_what_does_not_change_the_result():
    fields = key_fields(FULL)
    assert fields["train"] == {
        "learning_rate": 0.001,
        "peft": {"type": "lora", "r": 8, "target_modules": ["q_proj"]},
    }
    assert fields.keys() == {"seed", "revision", "dtype", "quantization", "mix", "train"}


def test_inputs_are_the_given_settings_that_name_files_or_models():
    assert input_fields(FULL) == {"model": "base", "data": ("a.jsonl", "b.parquet")}


def test_every_class_of_a_config_checks_its_own_fields():
    with pytest.raises(ConfigError, match="--mix: "):
        Config(data=(), mix=(0.0,))
    with pytest.raises(ConfigError, match=r"--dtype: 'fp8' does not work\n  hint: accepted: auto, float32"):
        Config(data=(), dtype="fp8")
    with pytest.raises(ConfigError, match="--threads: 0 does not work"):
        Config(data=(), threads=0)


def test_a_required_setting_that_is_missing_is_named_with_its_meaning():
    with pytest.raises(UserError, match="--out: is required\n  hint: directory of the result"):
        required(Config(data=()), "out")
