import pickle

import pytest

from maypole.core.errors import ConfigError, DataError, MissingExtra, RemoteError, UnsupportedModel, UserError, rows_in


def test_data_error_names_file_row_and_field():
    error = DataError("expected a string, found null", file="a.jsonl", row=3, field="text", expected="remove the row")
    assert str(error) == 'a.jsonl row 3, field "text": expected a string, found null\n  hint: remove the row'
    assert isinstance(error, UserError)


def test_config_error_names_the_flag_the_value_and_what_is_accepted():
    assert str(ConfigError("learning_rate", -1, "a number above 0")) == (
        "--learning-rate: -1 does not work\n  hint: accepted: a number above 0"
    )


def test_an_error_of_a_row_gets_the_files_whose_rows_were_counted():
    said = r'^a.jsonl, b.jsonl row 3, field "text": null\n  hint: a string$'
    with pytest.raises(DataError, match=said), rows_in("a.jsonl", "b.jsonl"):
        raise DataError("null", row=3, field="text", expected="a string")
    with pytest.raises(DataError, match=r"^c.jsonl row 3: null$"), rows_in("a.jsonl"):
        raise DataError("null", file="c.jsonl", row=3)


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
