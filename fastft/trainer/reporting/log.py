"""The run's record, one JSON object per line: losses, evaluations, generations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


class RunLog:
    """`log.jsonl` of a run. A resumed run takes over what was logged up to its checkpoint, and drops the rest.

    Args:
        output_dir: where the log goes.
        step: where the run starts; 0 begins a new log.
        before: folder of the log that is continued, by default the same.
        writes: whether records go to the file: one of several processes does that.

    Records by key: `loss, learning_rate, grad_norm, epoch, tokens_per_second, supervised_tokens_per_second, mfu,
    peak_memory_bytes, data_share` of the steps since the last such record, and `losses` by task or output if there are
    several; `eval_loss` of an evaluation, with `eval_losses` likewise, `perplexity` if it is of one task and output,
    and `tokens`, see `Watched.result`; `error_rate`; `generations`, a list of `origin, prompt, reference, completion`.
    All have `step`, the optimizer steps done.
    """

    def __init__(self, output_dir: Path, step: int, before: Path | None = None, *, writes: bool = True) -> None:
        self.path, self._writes = output_dir / LOG, writes
        known = read_log(before or output_dir) if step else []
        self.records = [record for record in known if record["step"] <= step]
        if not writes:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{LOG}.draft")
        draft.write_text("".join(_line(record) for record in self.records), encoding="utf-8")
        draft.replace(self.path)

    def add(self, record: dict[str, Any]) -> None:
        """Append one record; a process that is killed after this leaves it."""
        self.records.append(record)
        if not self._writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def having(self, key: str) -> list[dict[str, Any]]:
        """The records with this key, in order."""
        return [record for record in self.records if key in record]


def numbers(record: Mapping[str, Any], joint: str) -> dict[str, float]:
    """The numbers of a record by name; with "/" for a joint, `{"losses": {"a": 1}}` gives `losses/a`."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}{joint}{inner}": number for inner, number in numbers(value, joint).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """Whole records of a run's log; a last line cut by a crash is left out."""
    records, path = [], output_dir / LOG
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
