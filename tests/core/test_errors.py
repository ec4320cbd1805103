from maypole.core.errors import ConfigError, DataError, UserError


def test_data_error_names_file_row_and_field():
    error = DataError("expected a string, found null", file="a.jsonl", row=3, field="text", expected="remove the row")
    assert str(error) == 'a.jsonl row 3, field "text": expected a string, found null\n  hint: remove the row'
    assert isinstance(error, UserError)


def test_config_error_names_the_flag_the_value_and_what_is_accepted():
    assert str(ConfigError("learning_rate", -1, "a number above 0")) == (
        "--learning-rate: -1 does not work\n  hint: accepted: a number above 0"
    )
