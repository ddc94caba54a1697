import pytest

from fastft.data import hub
from fastft.data.sources import Source, read

datasets = pytest.importorskip("datasets")

ROWS = [{"prompt": f"é {index}", "completion": "x", "id": index} for index in range(1000)]


@pytest.fixture
def saved(tmp_path):
    def save(name, *splits):
        rows = datasets.Dataset.from_list(ROWS)
        kept = datasets.DatasetDict(dict.fromkeys(splits, rows)) if splits else rows
        kept.save_to_disk(tmp_path / name)
        return str(tmp_path / name)

    return save


def test_a_saved_folder_with_or_without_its_prefix(saved):
    folder = saved("one")
    for source in (folder, f"hf:{folder}"):
        records = list(read(source))
        assert [record.columns for record in records] == ROWS
        assert records[7].origin == f"hf:{folder}[7]"
    assert {path.suffix for path in Source(folder).files()} == {".arrow", ".json"}


def test_a_selection_is_read_as_selected(tmp_path):
    datasets.Dataset.from_list(ROWS).select([5, 3]).save_to_disk(tmp_path / "some")
    assert [record.columns["id"] for record in read(str(tmp_path / "some"))] == [5, 3]


def test_splits(saved):
    several = saved("several", "train", "test")
    assert len(list(read(several))) == 1000
    assert len(list(read(f"hf:{several}::test"))) == 1000
    assert len(list(read(saved("held", "test")))) == 1000
    with pytest.raises(ValueError, match=r"has no split 'dev'; it has train, test"):
        list(read(f"hf:{several}::dev"))
    with pytest.raises(ValueError, match=r"is one split, .* and has no 'dev'"):
        list(read(f"hf:{saved('one')}::dev"))


def test_files_that_datasets_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [record.columns for record in read(f"hf:{tmp_path / 'data'}")] == [{"text": "a"}, {"text": "b"}]
    assert [record.columns for record in read(f"hf:{tmp_path / 'data'}::train[:1]")] == [{"text": "a"}]
    with pytest.raises(ValueError, match=r'cannot be loaded: Unknown split "dev"'):
        list(read(f"hf:{tmp_path / 'data'}::dev"))
    with pytest.raises(FileNotFoundError, match=r"source: 'hf:.*nothing' cannot be loaded"):
        list(read(f"hf:{tmp_path / 'nothing'}"))


def test_names():
    assert hub.parts("hf:a/b") == ("a/b", None, None)
    assert hub.parts("hf:a/b:c:train[:1%]") == ("a/b", "c", "train[:1%]")
    assert hub.parts("hf:a/b::test") == ("a/b", None, "test")
    with pytest.raises(ValueError, match="hf:name"):
        hub.parts("hf:")


def test_nothing_saved_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"source: 'hf:.*empty' (has no rows|cannot be loaded)"):
        list(read(str(tmp_path / "empty")))
