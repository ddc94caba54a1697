"""Command line and YAML file -> TrainConfig. The file gives values, the command line overrides them."""

import dataclasses
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from fastft.trainer.config import FIELD_TYPES, FIELDS, TrainConfig, unknown_key, wanted


def parse_config(
    argv: Sequence[str], *, prog: str = "fastft train", defaults: Mapping[str, Any] | None = None
) -> TrainConfig:
    """The config of `config.yaml --learning_rate 1e-4 ...`; the file, also given as `--config FILE`, may be missing.

    Args:
        argv: words after the command.
        prog: the command, for the help text.
        defaults: values instead of those of `TrainConfig`.

    Raises:
        ValueError, TypeError: an unknown key (the nearest one is named), a value that does not fit, a missing
            required one, YAML that cannot be read (with file and line).
        FileNotFoundError: the config file.
        SystemExit: after `--help`.
    """
    file, words = _split(argv)
    parser = _parser(prog, defaults or {})
    values = read_yaml(file) if file else {}
    try:
        namespace = parser.parse_args(words, namespace=parser.parse_object(values))
    except ArgumentError as error:
        raise ValueError(_readable(str(error))) from error
    chosen = {name: getattr(namespace, name) for name in FIELDS}
    required = ("model",) if chosen["tasks"] is not None else ("model", "train_data")
    missing = [name for name in required if chosen[name] is None]
    if missing:
        options = "; ".join(f"--{name}: {FIELDS[name].metadata['help']}" for name in missing)
        raise ValueError(f"{' and '.join(missing)} not given, neither in a config file nor as an option. {options}")
    return TrainConfig(**chosen)


def read_yaml(file: str) -> dict[str, Any]:
    """The mapping in a YAML file. Errors name file and line; a key that is no field names the nearest one."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"config file {file} not found")
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{file}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, yaml.MappingNode):
        raise ValueError(f"{file}:1: wanted lines of `key: value`, such as `learning_rate: 1e-4`")
    seen: set[str] = set()
    for key, _ in tree.value:
        name, place = str(key.value), f"{file}:{key.start_mark.line + 1}"
        if name not in FIELDS:
            raise ValueError(f"{place}: {unknown_key(name)}")
        if name in seen:
            raise ValueError(f"{place}: key {name!r} is given twice")
        seen.add(name)
    return dict(values)


def _parser(prog: str, defaults: Mapping[str, Any]) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog, usage=f"{prog} [config.yaml] [--option value ...]", exit_on_error=False, allow_abbrev=False
    )
    for name, field in FIELDS.items():
        default = None if field.default is dataclasses.MISSING else field.default
        parser.add_argument(
            f"--{name}", type=FIELD_TYPES[name], default=defaults.get(name, default), help=field.metadata["help"]
        )
    return parser


def _split(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The config file, given by position or as --config, and the other words. Every option takes one value."""
    file: str | None = None
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("-") or name == "config":
            if file is not None:
                raise ValueError(f"got {word!r} after the config file {file!r}: one config file, then --option value")
            file = word if not word.startswith("-") else value or _value("config", "a file", words)
        elif word in ("-h", "--help"):
            rest.append(word)
        elif name not in FIELDS:
            raise ValueError(unknown_key(name))
        else:
            rest.append(word if "=" in word else f"{word}={_value(name, wanted(name), words)}")
    return file, rest


def _value(name: str, kind: str, words: Iterator[str]) -> str:
    """The word behind an option; it may begin with a dash, but not with two, as options do."""
    value = next(words, None)
    if value is None or value.startswith("--"):
        got = "nothing follows" if value is None else f"{value} follows"
        raise ValueError(f"{name} needs a value, and {got}; wanted {kind}: --{name}=VALUE")
    return value


def _readable(message: str) -> str:
    """jsonargparse's refusal of a value, in the words of the other messages."""
    found = re.search(r'Parser key "(\w+)".*(?:Got|Given) value: (.*)', message, re.DOTALL)
    if not found:
        return " ".join(message.split())
    name, value = found[1], found[2].strip()
    shown = value if value.startswith(("[", "{")) else repr(value)
    return f"{name} is {shown}; wanted {wanted(name)} ({FIELDS[name].metadata['help']})"
