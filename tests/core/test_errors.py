import pickle

import pytest

from maypole.core.errors import ConfigError, DataError, MissingExtra, RemoteError, UnsupportedModel, UserError


def test_data_error_names_file_row_and_field():
    error = DataError("expected a string, found null", file="a.jsonl", row=3, field="text", expected="remove the row")
    assert str(error) == 'a.jsonl row 3, field "text": expected a string, found null\n  hint: remove the row'
    assert isinstance(error, UserError)


def test_config_error_names_the_flag_the_value_and_what_is_accepted():
    assert str(ConfigError("learning_rate", -1, "a number above 0")) == (
        "--learning-rate: -1 does not work\n  hint: accepted: a number above 0"
    )


@pytest.mark.parametrize(
    "error",
    [
        DataError("null", file="a.jsonl", row=3, field="text"),
        ConfigError("rate", 2, "up to 1"),
        MissingExtra("ray", "--ray"),
        UnsupportedModel("bert", "a causal head"),
        RemoteError("down", retryable=True),
    ],
)
def test_an_error_comes_whole_out_of_another_process(error):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)
