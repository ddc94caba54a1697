import re
from pathlib import Path

import pytest

from fastft.trainer.arguments import parse_config, read_yaml


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("model: m  # the model\ntrain_data: d.jsonl\nlearning_rate: 3e-4\nbf16: true\neval_data: null\n")
    return str(path)


def test_file_gives_values_and_options_override_them(config_file: str) -> None:
    config = parse_config([config_file, "--learning_rate", "1e-5", "--max_steps=7"])
    assert (config.model, config.learning_rate, config.max_steps, config.bf16) == ("m", 1e-5, 7, True)
    assert parse_config([config_file]).learning_rate == 3e-4  # which YAML 1.1 reads as a text


@pytest.mark.parametrize("place", [0, 1, 2])
def test_file_can_be_given_anywhere_and_in_three_ways(config_file: str, place: int) -> None:
    options = [["--max_steps", "-1"], ["--seed=3"]]
    for words in ([config_file], ["--config", config_file], [f"--config={config_file}"]):
        argv = [word for part in (*options[:place], words, *options[place:]) for word in part]
        assert (parse_config(argv).seed, parse_config(argv).model) == (3, "m")


def test_without_a_file() -> None:
    config = parse_config(["--model", "m", "--train_data", "d", "--bf16", "null", "--resume_from_checkpoint", "a/b"])
    assert (config.bf16, config.resume_from_checkpoint) == (None, "a/b")
    assert parse_config(["--resume_from_checkpoint=true"], defaults={"model": "m", "train_data": "d"})


@pytest.mark.parametrize("value", ["-colour", "-1", "--colour", "a b=c", ""])
def test_values_may_begin_with_a_dash(config_file: str, value: str) -> None:
    config = parse_config([config_file, f"--keep_spans={value}", "--seed", "3"])
    assert (config.keep_spans, config.seed) == (value, 3)
    if not value.startswith("--"):
        assert parse_config([config_file, "--keep_spans", value, "--seed", "3"]) == config


def test_defaults_of_a_command_yield_to_file_and_options(config_file: str) -> None:
    defaults = {"learning_rate": 1.0, "seed": 9, "max_steps": 5}
    config = parse_config([config_file, "--max_steps", "6"], defaults=defaults)
    assert (config.learning_rate, config.seed, config.max_steps) == (3e-4, 9, 6)


def test_config_written_is_read_back(config_file: str, tmp_path: Path) -> None:
    config = parse_config([config_file])
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert parse_config([str(again)]) == config


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learing_rate", "1"], ["unknown key 'learing_rate'", "did you mean 'learning_rate'"]),
        (["--lr=1"], ["unknown key 'lr'", "did you mean 'learning_rate'"]),
        (["-x"], ["unknown key '-x'"]),
        (["--max_steps", "many"], ["max_steps is 'many'", "wanted a whole number", "optimizer steps"]),
        (["--lr_scheduler_type", "cos"], ["lr_scheduler_type is 'cos'", "linear or cosine or constant"]),
        (["--bf16", "maybe"], ["bf16 is 'maybe'", "wanted true or false or null"]),
        (["--max_steps"], ["max_steps needs a value", "nothing follows", "a whole number"]),
        (["--packing", "--output_dir", "out"], ["packing needs a value", "--output_dir follows", "true or false"]),
        (["--model", "m", "--tasks", "[]"], ["tasks is []; wanted null, or a list of tasks"]),
        (["--config"], ["config needs a value"]),
        (
            ["--tasks", "[mlm]"],
            ["tasks is ['mlm']; wanted", "a list of tasks with keys and values, such as [{objective: mlm"],
        ),
        (["--model", "m"], ["train_data not given", "--train_data"]),
        ([], ["model and train_data not given"]),
        (["--model", "m", "--train_data", "d", "--learning_rate", "-1"], ["learning_rate is -1.0"]),
        (["a.yaml", "b.yaml"], ["'b.yaml'", "after the config file 'a.yaml'"]),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        parse_config(argv)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\nlearing_rate: 1\n", [":2: unknown key 'learing_rate'", "did you mean 'learning_rate'"]),
        ("model: m\ntrain_data: [d\nseed: 1\n", [":3: not valid YAML"]),
        ("model: m\n\tseed: 1\n", [":2: not valid YAML"]),
        ("- model\n", [":1:", "key: value"]),
        ("just words", [":1:", "key: value"]),
        ("model: m\nmodel: n\n", [":2: ", "'model'", "twice"]),
        ("model: m\ntrain_data: d\nmax_steps: many\n", ["max_steps is 'many'"]),
        ("? [a]\n: 1\n", [":1: not valid YAML"]),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        parse_config([str(path)])
    assert all(word in str(error.value) for word in words), error.value


def test_missing_unreadable_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config file .*none\.yaml not found"):
        read_yaml(str(tmp_path / "none.yaml"))
    binary, empty = tmp_path / "binary.yaml", tmp_path / "empty.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_yaml(str(binary))
    empty.write_text("# nothing yet\n")
    assert read_yaml(str(empty)) == {}


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_config(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "fastft train [config.yaml]" in shown
    assert "--gradient_accumulation_steps" in shown
    assert "forward passes per optimizer step" in shown
