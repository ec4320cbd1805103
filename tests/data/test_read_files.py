import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from maypole.core.errors import DataError
from maypole.data import CHAT, COMPLETION, PAIR, PROMPT, TEXT, UNPAIRED, preview, read, sources, stream

ROWS = [{"text": f"row {i}", "n": i} for i in range(2500)]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet", "saved", "folder"])
def test_every_form_of_the_same_rows_is_read_alike(tmp_path, name):
    path = tmp_path / name
    match name:
        case "a.jsonl":
            write(path, jsonl(ROWS))
        case "a.jsonl.gz":
            write(path, gzip.compress(jsonl(ROWS[:9])) + gzip.compress(jsonl(ROWS[9:])))
        case "a.jsonl.zst":
            write(path, zstandard.compress(jsonl(ROWS[:9])) + zstandard.compress(jsonl(ROWS[9:])))
        case "a.json":
            write(path, json.dumps(ROWS, indent=1).encode())
        case "a.parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=700)
        case "saved":
            datasets.Dataset.from_list(ROWS).save_to_disk(path)
        case "folder":
            write(path / "b" / "part.jsonl", jsonl(ROWS[1000:]))
            pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS[:1000]), tmp_path / "x.parquet")
            (tmp_path / "x.parquet").rename(path / "a.parquet")
    assert read(path, TEXT).to_list() == ROWS


def test_the_second_reading_opens_the_file_that_the_first_one_wrote(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", jsonl(ROWS))
    first = read(path, TEXT)
    monkeypatch.setattr("maypole.data.reader._write", None)
    second = read(path, TEXT)
    assert first.cache_files == second.cache_files
    assert len(first.cache_files) == 1
    assert first._fingerprint == second._fingerprint
    assert first._fingerprint in first.cache_files[0]["filename"]


def test_the_fingerprint_follows_content_row_type_columns_and_mix_but_not_the_place(tmp_path):
    a = write(tmp_path / "a.jsonl", jsonl([{"text": "x", "prompt": "y"}]))
    b = write(tmp_path / "b" / "c.jsonl", a.read_bytes())
    prints = [
        ds._fingerprint
        for ds in (
            read(a, TEXT),
            read(a, PROMPT),
            read(a, PROMPT, columns={"prompt": "text"}),
            read([a, a], TEXT),
            read([a, a], TEXT, mix=(1, 2)),
            read([a, a], TEXT, mix=(1, 2), seed=1),
            read(write(tmp_path / "d.jsonl", jsonl([{"text": "z", "prompt": "y"}])), TEXT),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert read(b, TEXT)._fingerprint == prints[0]


def test_the_same_bytes_under_another_suffix_are_other_rows(tmp_path):
    a, b = (write(tmp_path / name, b"text\tn\nx\t1\n") for name in ("a.tsv", "a.txt"))
    assert read(a, TEXT).to_list() == [{"text": "x", "n": "1"}]
    assert read(b, TEXT).to_list() == [{"text": "text\tn\nx\t1\n", "path": "a.txt"}]
    c = write(tmp_path / "c.csv", b"text\tn\nx\t1\n")
    assert read(c, TEXT, columns={"text": "text\tn"}).to_list() == [{"text": "x\t1"}]


def test_a_failed_reading_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("MAYPOLE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.jsonl", jsonl([*ROWS, {"text": None}]))
    with pytest.raises(DataError):
        read(path, TEXT)
    assert [file for file in (tmp_path / "cache" / "rows").rglob("*") if file.is_file()] == []


def test_text_and_markdown_files_are_documents_with_their_path_kept_byte_for_byte(tmp_path):
    write(tmp_path / "d" / "b.md", "# Título\r\n\r\n* one\u2028two\n".encode())
    write(tmp_path / "d" / "a" / "x.txt", b"\xef\xbb\xbfwith a mark")
    write(tmp_path / "d" / ".hidden.md", b"no")
    write(tmp_path / "d" / "picture.png", b"\x89PNG")
    write(tmp_path / "d" / "z.rst.gz", gzip.compress(b"packed"))
    assert read(tmp_path / "d", TEXT).to_list() == [
        {"text": "with a mark", "path": "a/x.txt"},
        {"text": "# Título\r\n\r\n* one\u2028two\n", "path": "b.md"},
        {"text": "packed", "path": "z.rst.gz"},
    ]
    assert read(tmp_path / "d" / "b.md", PROMPT, columns={"prompt": "text"})[0]["path"] == "b.md"


def test_beside_data_files_text_files_are_read_only_as_documents(tmp_path):
    write(tmp_path / "d" / "a.jsonl", jsonl([{"prompt": "p", "text": "t"}]))
    write(tmp_path / "d" / "README.md", b"about")
    assert read(tmp_path / "d", TEXT)["text"] == ["t", "about"]
    assert read(tmp_path / "d", PROMPT)["prompt"] == ["p"]


def test_csv_holds_strings_and_numbers_only_where_the_row_type_says_so(tmp_path):
    content = 'prompt,completion,label,id\n"a, ""b""\nc",NULL,True,007\n12,,no,1e3\n'
    path = write(tmp_path / "a.csv", content.encode())
    assert read(path, UNPAIRED).to_list() == [
        {"prompt": 'a, "b"\nc', "completion": "NULL", "label": True, "id": "007"},
        {"prompt": "12", "completion": "", "label": False, "id": "1e3"},
    ]
    pairs = write(tmp_path / "a.tsv", b"prompt\tchosen\trejected\tmargin\na\tb\tc\t0.5\nd\te\tf\t\n")
    assert read(pairs, PAIR)["margin"] == [0.5, None]


def test_columns_are_renamed_and_all_others_travel_along(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([{"body": "x", "text": "old", "tags": ["a"], "at": "2024-01-01"}]))
    assert read(path, TEXT, columns={"text": "body"}).to_list() == [{"text": "x", "tags": ["a"], "at": "2024-01-01"}]


def test_a_schema_grows_by_new_columns_new_keys_and_floats_among_integers(tmp_path):
    rows = [{"text": "a", "n": 1, "m": {"k": 1}, "late": None} for _ in range(1200)]
    rows += [{"text": "b", "n": 0.5, "m": {"j": "x"}, "late": "y", "new": [1]} for _ in range(1200)]
    found = read(write(tmp_path / "a.jsonl", jsonl(rows)), TEXT)
    assert found[0] == {"text": "a", "n": 1.0, "m": {"k": 1, "j": None}, "late": None, "new": None}
    assert found[2399] == {"text": "b", "n": 0.5, "m": {"k": None, "j": "x"}, "late": "y", "new": [1]}


def test_integers_that_no_float_holds_are_not_rounded_when_fractions_follow(tmp_path):
    rows = [{"text": "a", "n": 2**60 + 1} for _ in range(1000)] + [{"text": "b", "n": 0.5}]
    with pytest.raises(DataError, match='field "n": the column holds fractions and integers too large'):
        read(write(tmp_path / "a.jsonl", jsonl(rows)), TEXT)


def test_encodings_that_parquet_chooses_do_not_matter(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "wide": pa.array(["c", "d"], pa.large_string()),
            "lists": pa.array([[1], [2]], pa.large_list(pa.int32())),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl", jsonl([{"text": "e", "wide": "f", "lists": [3]}]))
    found = read([tmp_path / "a.parquet", tmp_path / "b.jsonl"], TEXT)
    assert (found["text"], found["wide"], found["lists"]) == (["a", "b", "e"], ["c", "d", "f"], [[1], [2], [3]])


def test_a_dataset_in_memory_is_a_source_and_its_selection_is_kept():
    rows = datasets.Dataset.from_list(ROWS).select([5, 3])
    assert read(rows, TEXT).to_list() == [ROWS[5], ROWS[3]]


def test_a_hub_id_is_loaded_with_config_and_split_and_its_errors_are_translated(monkeypatch):
    def load(path, config, split):
        if path == "who/nothing":
            raise FileNotFoundError("Dataset 'who/nothing' doesn't exist on the Hub\nlong story")
        return datasets.Dataset.from_list([{"text": f"{path} {config} {split}"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("who/some-thing", TEXT)["text"] == ["who/some-thing None train"]
    assert read("who/some-thing:en#test", TEXT)["text"] == ["who/some-thing en test"]
    with pytest.raises(DataError, match=r"who/nothing: no such file, and the hub gives no data set .* on the Hub\n"):
        read("who/nothing", TEXT)


def test_a_saved_directory_of_splits_gives_train_or_asks_which(tmp_path):
    data = datasets.Dataset.from_list([{"text": "x"}])
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "a")
    datasets.DatasetDict({"left": data, "right": data}).save_to_disk(tmp_path / "b")
    assert read(tmp_path / "a", TEXT)["text"] == ["x"]
    with pytest.raises(DataError, match="several splits: left, right"):
        read(tmp_path / "b", TEXT)
    assert read(tmp_path / "b" / "left", TEXT)["text"] == ["x"]


def test_stream_gives_the_rows_of_read_without_a_copy_and_checks_only_what_it_is_told(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(ROWS))
    assert [row for batch in stream(path, TEXT) for row in batch.to_pylist()] == ROWS
    odd = write(tmp_path / "b.jsonl", jsonl([{"body": 1}]))
    assert [batch.to_pylist() for batch in stream(odd)] == [[{"body": 1}]]


def test_preview_counts_the_first_rows_by_the_reason_that_a_method_drops_them(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([*ROWS, {"text": None}]))
    found = preview(path, TEXT, 1500, drop=lambda row: "odd" if row["n"] % 2 else None)
    assert (found.kept, found.dropped, len(found.rows)) == (750, {"odd": 750}, 750)
    assert preview(path, TEXT).rows[-1] == ROWS[999]


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
line_ends = st.sampled_from(["\n", "\r\n", "\n\n", "\r\n \r\n"])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": plain, "completion": plain, "n": st.integers(-(2**63), 2**63 - 1)}), min_size=1
    ),
    end=line_ends,
    mark=st.booleans(),
    escape=st.booleans(),
    last=st.booleans(),
)
def test_json_lines_come_back_as_they_were_written(tmp_path_factory, rows, end, mark, escape, last):
    text = end.join(json.dumps(row, ensure_ascii=escape) for row in rows) + (end if last else "")
    path = write(tmp_path_factory.mktemp("h") / "a.jsonl", (b"\xef\xbb\xbf" if mark else b"") + text.encode())
    assert read(path, COMPLETION).to_list() == rows


values = st.recursive(
    st.none() | st.booleans() | st.integers() | plain, lambda v: st.lists(v, max_size=3), max_leaves=6
)


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(st.dictionaries(plain, values, max_size=3), max_size=5),
    piece=st.integers(1, 40),
    indent=st.booleans(),
)
def test_a_json_array_is_read_alike_in_pieces_of_any_size(tmp_path_factory, items, piece, indent):
    from maypole.data import files, jsonl

    text = json.dumps(items, ensure_ascii=False, indent=2 if indent else None)
    path = write(tmp_path_factory.mktemp("h") / "a.json", text.encode())
    with pytest.MonkeyPatch.context() as patch, files.opened(path, "a.json") as file:
        patch.setattr(jsonl, "_PIECE", piece)
        assert [value for value, _ in jsonl._items(file, "a.json")] == items


def test_messages_may_differ_in_their_optional_keys(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    rows = [{"messages": [{"role": "user", "content": "a"}, call]}, {"messages": [{"role": "user", "content": "b"}]}]
    found = read(write(tmp_path / "a.jsonl", jsonl(rows)), CHAT)
    assert found[1]["messages"] == [{"role": "user", "content": "b", "tool_calls": None}]


def test_hub_data_is_known_by_what_the_hub_holds_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    held = datasets.Dataset.from_list([{"text": "first"}])
    monkeypatch.setattr("maypole.data.tables.hub_dataset", lambda name: held)
    before = sources.commits(SimpleNamespace(data=("a.jsonl", "owner/name"), eval_data=("a.jsonl",)))
    assert before == {"data_commit": [held._fingerprint]}
    held = datasets.Dataset.from_list([{"text": "second"}])
    assert sources.commits(SimpleNamespace(data=("owner/name",))) != before
