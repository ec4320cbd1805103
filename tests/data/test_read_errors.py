import gzip
import json
import re

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from maypole.core.errors import ConfigError, DataError
from maypole.data import CHAT, COMPLETION, PAIR, SAMPLES, TEXT, preview, read, stream


def lines(*rows: object) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


GOOD = {"text": "good"}
MANY = [GOOD] * 1181

FILES = {
    # name: (content, row type, message)
    "null.jsonl": (
        lines(*MANY, {"text": None}),
        TEXT,
        'null.jsonl row 1182, field "text": expected a string, found null',
    ),
    "number.jsonl": (lines(*MANY, {"text": 7}, GOOD), TEXT, 'row 1182, field "text": .*a number'),
    "first.jsonl": (lines({"text": 7}), TEXT, 'row 1, field "text": expected a string, found a number'),
    "absent.jsonl": (lines(GOOD, {"txt": "x"}), TEXT, 'row 2, field "text": expected a string, found null'),
    "blank.jsonl": (lines(GOOD, b"\n", b" \r\n", {"text": None}), TEXT, 'row 4, field "text"'),
    "object.jsonl": (lines(GOOD, [1]), TEXT, r"row 2: expected an object, found a list\n  hint: \{"),
    "cut.jsonl": (lines(GOOD, b'{"text": "abc'), TEXT, "row 2: no valid JSON: Unterminated.*: '.*abc'\n.*cut off"),
    "quotes.jsonl": (lines(GOOD, b"{'text': 1}\n"), TEXT, "row 2: no valid JSON.*double quotes"),
    "two.jsonl": (
        lines(b'{"text": "a"} {"text": "b"}\n'),
        TEXT,
        r"row 1: no valid JSON: Extra data .*\n.*one object per",
    ),
    "latin.jsonl": (lines(GOOD, b'{"text": "caf\xe9"}\n'), TEXT, "row 2: not UTF-8: byte 0xe9 at offset 30"),
    "utf16.jsonl": ('{"text": "a"}\n'.encode("utf-16"), TEXT, "row 1: the file is UTF-16"),
    "half.jsonl": (lines(GOOD, b'{"text": "\\ud800"}\n'), TEXT, 'row 2, field "text": .*surrogate'),
    "huge.jsonl": (lines(GOOD, {"text": "a", "n": 2**70}), TEXT, 'row 2, field "n"'),
    "deep.jsonl": (b'{"text":' + b"[" * 200_000, TEXT, "row 1: the JSON is nested too deeply"),
    "type.jsonl": (
        lines(*[{**GOOD, "n": "a"}] * 1500, {**GOOD, "n": 1}),
        TEXT,
        'row 1501, field "n": the column changes',
    ),
    "types.jsonl": (
        lines({**GOOD, "n": "a"}, {**GOOD, "n": 1}),
        TEXT,
        'row 2, field "n": .*: a string .*, a number here',
    ),
    "empty.jsonl": (b"", TEXT, "there are no rows in it"),
    "empty.jsonl.gz": (b"", TEXT, "there are no rows in it"),
    "empty.json": (b" [ ] ", TEXT, "there are no rows in it"),
    "cut.json": (b'[{"text": "a"}, {"text": "b"}', TEXT, r"row 2: the array has no end\n  hint: was the file cut off"),
    "cut2.json": (b'[{"text": "a"}, {"text": "b', TEXT, "row 2: no valid JSON: Unterminated"),
    "comma.json": (b'[{"text": "a"} {"text": "b"}]', TEXT, "row 1: expected a comma or ]"),
    "bad.json": (b'[{"text": "a"}, {text: 1}' + b" " * 5_000_000, TEXT, "row 2: no valid JSON"),
    "after.json": (b'[{"text": "a"}] {}', TEXT, "'{' follows the end of the array"),
    "latin.json": (b'[{"text": "caf\xe9"}]', TEXT, "not UTF-8: byte 0xe9 near offset 14"),
    "binary.txt": (b"\x7fELF\x00\x00\x01", TEXT, "this is no text: byte 4 is zero"),
    "binary.md": (b"abc\xff\xfe\x00", TEXT, "this is no text: byte 5 is zero"),
    "latin.md": ("só café".encode("latin-1"), TEXT, "not UTF-8: byte 0xf3 at offset 1"),
    "rubbish.parquet": (b"PAR1 rubbish", TEXT, "rubbish.parquet: no readable Parquet file"),
    "rubbish.jsonl.gz": (b"rubbish", TEXT, "the gzip data is damaged or cut off"),
    "nested.csv": (
        b"messages\n\"[{'role': 1}]\"\n",
        CHAT,
        'row 1, field "messages": .*found a string\n.*CSV holds flat rows',
    ),
    "fields.csv": (b"text,n\na,1\nb,2,3\n", TEXT, "row 2: expected 2 fields as in the header, found 3"),
    "latin.csv": (b"text\na\ncaf\xe9\n", TEXT, "not UTF-8: byte 0xe9 at offset 10"),
    "twice.csv": (b"text,text\na,b\n", TEXT, "names a column twice: text"),
    "empty.csv": (b"", TEXT, "empty.csv: the file is empty"),
    "header.csv": (b"text\n", TEXT, "there are no rows in it"),
    "score.csv": (
        b"prompt,chosen,rejected,margin\na,b,c,1\na,b,c,high\n",
        PAIR,
        "row 2, field \"margin\": .*found 'high'",
    ),
    "odd.docx": (b"x", TEXT, "files ending in '.docx' cannot be read\n.*.jsonl"),
    "noending": (b"x", TEXT, "the file has no suffix"),
    "rule.jsonl": (
        lines(*[{"prompt": "a", "completions": ["b"], "scores": [1.0]}] * 3, {"prompt": "a", "completions": ["b"]}),
        SAMPLES,
        'row 4, field "scores": one of',
    ),
    "roles.jsonl": (
        lines({"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": None}]}),
        CHAT,
        'row 2, field "messages": .*in message 1 "content" is null',
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_input_is_told_with_file_row_and_what_would_be_right(tmp_path, name):
    content, row_type, message = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    for reader in (read, preview):
        if reader is preview and b"good" in content and len(content) > 10_000:
            continue  # the first 1,000 rows are fine
        with pytest.raises(DataError, match=message) as raised:
            reader(path, row_type)
        assert name in str(raised.value)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.5, 0.99])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_compressed_file_that_was_cut_off_is_an_error_and_never_fewer_rows(tmp_path, ending, kept, name):
    rows = [{"text": f"row {i * 7919 % 10007}"} for i in range(5000)]
    raw = json.dumps(rows).encode() if name == "a.json" else lines(*rows)
    raw = b"text\n" + b"".join(f"{row['text']}\n".encode() for row in rows) if name == "a.csv" else raw
    packed = gzip.compress(raw) if ending == ".gz" else zstandard.compress(raw)
    path = tmp_path / (name + ending)
    path.write_bytes(packed[: int(len(packed) * kept)])
    with pytest.raises(DataError, match=rf"{name}\{ending}.*damaged or cut off"):
        read(path, TEXT)
    path.write_bytes(packed)
    assert len(read(path, TEXT)) == (1 if name == "a.txt" else 5000)


def test_a_truncated_parquet_file_is_an_error(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": ["a"] * 100}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="no readable Parquet file"):
        read(tmp_path / "a.parquet", TEXT)


def test_a_row_of_parquet_is_counted_over_all_its_groups(tmp_path):
    table = pa.table({"text": ["a"] * 2500 + [None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=600)
    with pytest.raises(DataError, match=r'a.parquet row 2501, field "text": expected a string, found null'):
        read(tmp_path / "a.parquet", TEXT)


def test_a_wrong_row_in_a_folder_names_its_file_and_its_own_row(tmp_path):
    for part in range(3):
        rows = [GOOD] * 1181 + ([{"text": None}] if part == 2 else [])
        (tmp_path / f"part-0{part + 1}.jsonl").write_bytes(lines(*rows))
    with pytest.raises(DataError, match=r"part-03.jsonl row 1182, field \"text\": expected a string, found null"):
        read(tmp_path, TEXT)


def test_a_type_that_changes_between_files_names_the_second_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "x", "id": 1}))
    (tmp_path / "b.jsonl").write_bytes(lines({"text": "x", "id": None}, {"text": "x", "id": "one"}))
    with pytest.raises(DataError, match=r"b.jsonl row 2, field \"id\": .*a number in the rows before, a string here"):
        read(tmp_path, TEXT)


def test_missing_paths_are_told_with_the_nearest_name(tmp_path):
    (tmp_path / "chats.jsonl").write_bytes(lines(GOOD))
    with pytest.raises(DataError, match=r"no such file or folder\n  hint: did you mean .*chats.jsonl\?"):
        read(tmp_path / "chat.jsonl", TEXT)
    with pytest.raises(DataError, match=r"no such file or folder\n.*does not exist either"):
        read(tmp_path / "no" / "chat.jsonl", TEXT)


def test_empty_and_unreadable_folders_list_what_can_be_read(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder is empty\n  hint: files ending in \.jsonl"):
        read(tmp_path / "empty", TEXT)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 files in this folder can be read\n.*\.parquet"):
        read(tmp_path, TEXT)


def test_a_missing_column_names_those_found_and_the_flag(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"id": 1, "body": "x"}))
    with pytest.raises(DataError, match=r'no column "text" .*found id, body\n  hint: --columns text=body'):
        read(path, TEXT)
    with pytest.raises(DataError, match=r'no column "bodi" to take as "text"\n  hint: .*found: id, body'):
        read(path, TEXT, columns={"text": "bodi"})
    with pytest.raises(ConfigError, match=r"--columns: 'txt=body' does not work\n.*one of text"):
        read(path, TEXT, columns={"txt": "body"})


def test_a_column_that_ends_after_a_thousand_rows_is_missing_at_that_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*[GOOD] * 1000, {"txt": "x"}))
    with pytest.raises(DataError, match=r'a.jsonl row 1001: no column "text"'):
        read(path, TEXT)


def test_a_chat_asked_for_as_completions_is_refused_instead_of_losing_turns(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"messages": [{"role": "user", "content": "a"}]}))
    with pytest.raises(DataError, match="would lose the others"):
        read(path, COMPLETION)


def test_things_that_are_no_source_say_what_would_be():
    with pytest.raises(DataError, match=r"a dict is no source of rows\n.*Dataset\.from_list"):
        read({"text": ["a"]}, TEXT)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="no source of data was given"):
        read([], TEXT)
    with pytest.raises(DataError, match=re.escape("the data set in memory: there are no rows")):
        read(datasets.Dataset.from_dict({"text": []}), TEXT)


def test_stream_of_a_missing_file_fails_before_the_first_batch_is_asked_for(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        stream(tmp_path / "a.jsonl")
