from pathlib import Path

from fastft.trainer.reporting.log import RunLog, numbers


def test_records_are_on_disk_at_once_and_read_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", 0)
    log.add({"step": 1, "loss": 2.5})
    log.add({"step": 1, "generations": ["zwölf\n"]})
    log.add({"step": 2, "loss": 1.5})
    assert len((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert RunLog(tmp_path / "run", 2).records == log.records
    assert log.having("loss") == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5}]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    for step in range(5):
        log.add({"step": step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # the crash
    assert [record["step"] for record in RunLog(tmp_path, 3).records] == [0, 1, 2, 3]
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 4


def test_a_new_run_begins_a_new_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n')
    assert RunLog(tmp_path, 0).records == []
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_numbers_of_a_record() -> None:
    record = {"step": 4, "losses": {"a": 2.0, "b.x": 3.0}, "tokens": {"<t>": {"nll": 0.5}}, "note": "text"}
    assert numbers(record, "/") == {"step": 4.0, "losses/a": 2.0, "losses/b.x": 3.0, "tokens/<t>/nll": 0.5}
    assert numbers({"generations": [{"origin": 1}], "yes": True, "n": None}, ".") == {}
    assert numbers({"step": 1, "a": {"step": 3}}, ".") == {"step": 1.0, "a.step": 3.0}
