import json
import sys

import pytest

from fastft.data.sources import Source, read


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_with_blank_lines_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = write(tmp_path, "a.jsonl", '\ufeff{"text": "é"}\r\n\r\n  \r\n{"text": "b"}')
    assert [(record.columns, record.origin) for record in read(str(path))] == [
        ({"text": "é"}, f"{path}:1"),
        ({"text": "b"}, f"{path}:4"),
    ]


def test_a_json_array(tmp_path):
    path = write(tmp_path, "a.json", '[{"prompt": "p",\n "completion": "c"}, {"text": "b"}]')
    assert [record.origin for record in read(str(path))] == [f"{path}[0]", f"{path}[1]"]


def test_a_folder_is_read_in_the_order_of_names_without_hidden_and_unknown_files(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.md", ".hidden.txt", ".git/d.txt", "e.png"):
        write(tmp_path, name, name)
    records = list(read(str(tmp_path)))
    assert [record.columns["text"] for record in records] == ["a.txt", "b.txt", "sub/c.md"]
    assert records[2].origin == str(tmp_path / "sub" / "c.md")


def test_reading_is_lazy(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\nbroken')
    assert next(iter(read(str(path)))).columns == {"text": "a"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": b}\n', r"a\.jsonl:2:10: malformed JSON: Expecting value"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"', r"a\.jsonl:2:13: malformed JSON: Expecting ',' delimiter"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\n', r"a\.jsonl:2:10: malformed JSON: Unterminated string$"),
        ("a.jsonl", '{"text": "a\tb"}\r\n', r"a\.jsonl:1:12: malformed JSON: Invalid control character$"),
        ("a.jsonl", '{"text": "a"}\n\n["text"]', r"a\.jsonl:3: an object with named columns is wanted, got an array"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: malformed JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a\.jsonl:2: not UTF-8 text \(byte 0xff at line 1, .* 11 of"),
        ("a.jsonl", "\n\n", r"a\.jsonl: the file is empty; one JSON object per line"),
        ("a.json", '[\n{"text": "a"},\n{"text" 1}]', r"a\.json:3:9: malformed JSON: Expecting ':' delimiter"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', r"a\.json:2:1: malformed JSON: Extra data .*\.jsonl"),
        ("a.json", '{"text": "a"}', r"a\.json: an array of objects is wanted, got an object"),
        ("a.json", "[]", r"a\.json: an array of objects is wanted, got an empty array"),
        ("a.json", '[{"text": "a"}, 3]', r"a\.json\[1\]: an object with named columns is wanted, got a number"),
        ("a.json", "", r"a\.json: the file is empty"),
        ("a.txt", b"abc\0def", r"a\.txt: binary data \(a zero byte at 3\)"),
        ("a.txt", b"abc\nd\xe9f", r"a\.txt: not UTF-8 text \(byte 0xe9 at line 2, byte column 2"),
        ("a.yaml", "a: b", r"a\.yaml' ends in '\.yaml'; known are \.jsonl"),
        ("a.jsonl", b"\x1f\x8b\x08\x00\x00", r"a\.jsonl:1: binary data \(a zero byte at 3\)"),
        ("a.csv", "", r"a\.csv: the file has no rows; a line of column names"),
        ("a.csv", "prompt,completion\n", r"a\.csv: the file has no rows"),
        ("a.csv", 'a,b\n"1\n2",3\n4\n', r"a\.csv:4: 1 fields where the header has 2 \(a, b\)"),
        ("a.csv", "a,b\n1,2,3\n", r"a\.csv:2: 3 fields where the header has 2 \(a, b\)"),
        ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n', r"a\.csv:3: malformed CSV in the row that begins here: unexpected end"),
        ("a.csv", 'a,b\n1,"2"3\n', r"a\.csv:2: malformed CSV in the row that begins here: ',' expected"),
        ("a.csv", "a,,a\n1,2,3\n", r"a\.csv:1: the first line names the columns; '', 'a' is empty or there twice"),
        ("a.csv", b"a,b\n1,\xff\n", r"a\.csv:2: not UTF-8 text \(byte 0xff"),
        ("a.tsv", "a\tb\n1\n", r"a\.tsv:2: 1 fields where the header has 2"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        list(read(str(path)))


def test_rows_of_csv_and_tsv_are_strings_with_the_line_they_begin_on(tmp_path):
    long = "word " * 50_000
    path = write(tmp_path, "a.csv", f'\ufeffprompt,completion\r\n"one\r\ntwo, ""three""",4\r\n\r\né,{long}\r\n')
    assert [(record.columns, record.origin) for record in read(str(path))] == [
        ({"prompt": 'one\r\ntwo, "three"', "completion": "4"}, f"{path}:2"),
        ({"prompt": "é", "completion": long}, f"{path}:5"),
    ]
    path = write(tmp_path, "a.tsv", "prompt\tcompletion\na, b\tc\n")
    assert [record.columns for record in read(str(path))] == [{"prompt": "a, b", "completion": "c"}]


def test_parquet_tables(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [{"role": "user", "content": f"é {index}"}], "id": index} for index in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    records = list(read(str(tmp_path / "a.parquet")))
    assert [record.columns for record in records] == rows
    assert records[2999].origin == f"{tmp_path / 'a.parquet'}[2999]"
    assert len(list(read(str(tmp_path)))) == 3000
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty\.parquet: the table has no rows"):
        list(read(str(tmp_path / "empty.parquet")))
    path = write(tmp_path, "broken.parquet", (tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"broken\.parquet: not a readable Parquet file: Parquet magic bytes"):
        list(read(str(path)))


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    path = write(tmp_path, "a.parquet", "")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"source '.*a\.parquet' needs pyarrow: pip install pyarrow"):
        list(read(str(path)))
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("hf:squad", str(write(tmp_path, "saved/state.json", "{}").parent)):
        with pytest.raises(ImportError, match=r"source '.*' needs datasets: pip install datasets"):
            list(read(name))


def test_the_files_of_a_source_are_those_that_are_read(tmp_path):
    for name in ("b.txt", "sub/a.csv", ".hidden.txt", "c.png"):
        write(tmp_path, name, name)
    assert Source(str(tmp_path)).files() == [tmp_path / "b.txt", tmp_path / "sub" / "a.csv"]
    assert Source(str(tmp_path / "b.txt")).files() == [tmp_path / "b.txt"]
    assert Source("hf:squad").files() is None
    with pytest.raises(FileNotFoundError):
        Source(str(tmp_path / "d.txt")).files()


def test_a_folder_without_text_is_refused(tmp_path):
    write(tmp_path, "a.png", "")
    with pytest.raises(ValueError, match="has no file ending in"):
        list(read(str(tmp_path)))


def test_a_missing_file_names_the_nearest_one(tmp_path):
    write(tmp_path, "data/train.jsonl", json.dumps({"text": "a"}))
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*data/train\.jsonl'"):
        list(read(str(tmp_path / "data" / "trian.jsonl")))
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*/data'"):
        list(read(str(tmp_path / "date" / "train.jsonl")))
    with pytest.raises(FileNotFoundError, match="nothing of a like name"):
        list(read(str(tmp_path / "zzz")))


def test_built_in_names_are_told(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match="built-in corpora are builtin:stdlib-docstrings, builtin:stdlib-docs, builtin:cmudict"
    ):
        list(read("builtin:nothing"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="did you mean 'builtin:stdlib-docstrings'"):
        list(read("bultin:stdlib-docstrings"))
