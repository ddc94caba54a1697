"""The command `fastft export`: a checkpoint as a model, or an adapter, for plain transformers and PEFT."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastft.embedding import TrainableRows
from fastft.embedding.adapter import CONFIG, WEIGHTS
from fastft.embedding.model import tables_of
from fastft.hf.pretrained import load_model, load_tokenizer
from fastft.trainer.adapt import (
    NEW,
    OF_ADAPTER,
    adapt,
    is_adapted,
    is_whole,
    load_trained,
    row_ids,
)
from fastft.trainer.config import FIELDS, TrainConfig, unknown_key
from fastft.trainer.evaluation.best import Best
from fastft.trainer.given import given_tasks, model_class
from fastft.trainer.reporting.log import read_log
from fastft.trainer.reporting.progress import say
from fastft.trainer.saving.card import Exported, model_card
from fastft.trainer.saving.checkpoint import DamagedCheckpoint, checkpoints, read_state
from fastft.trainer.saving.whole import whole_or_absent

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIONS = {"dtype": " | ".join(DTYPES), "adapter": "true | false"}
USAGE = """\
usage: fastft export CHECKPOINT OUTPUT [--dtype float32 | bfloat16 | float16] [--adapter true]

Writes what a run has trained as a folder that transformers loads: weights with LoRA and trained rows merged, tokenizer,
generation config, and a README.md with the facts of the run.

  CHECKPOINT       a checkpoint-<step> folder, or the output_dir of a run: its newest whole checkpoint
  OUTPUT           a new or empty folder
  --dtype NAME     of the weights (default: float32, as they were trained)
  --adapter true   only the PEFT adapter: LoRA, the rows of train_rows and of new_tokens"""


class Source(NamedTuple):
    """A whole checkpoint, its trainer_state.json, the run's config, and the class of transformers that loads it."""

    checkpoint: Path
    state: dict[str, Any]
    config: TrainConfig
    kind: str


def run_export(argv: Sequence[str], console: Console) -> None:
    """`fastft export` with these words behind it."""
    if {"-h", "--help"} & set(argv):
        print(USAGE)
        return
    places, options = _read_words(argv)
    written = export(*places, dtype=options.get("dtype", "float32"), adapter=options.get("adapter") == "true")
    size = sum(path.stat().st_size for path in written.iterdir())
    say(console, f"written: {written} ({size / 2**20:,.1f} MiB)")


def export(checkpoint: Path, output: Path, *, dtype: str = "float32", adapter: bool = False) -> Path:
    """Write what a run has trained as a folder of its own; whole or not at all.

    Args:
        checkpoint: a checkpoint's folder, or a run's output_dir, which stands for its newest whole one.
        output: a folder that is empty or not there.
        dtype: of the weights, a key of `DTYPES`.
        adapter: write the PEFT adapter (LoRA, trained and new rows) in place of the whole model.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, DamagedCheckpoint: no whole checkpoint there.
        FileExistsError: `output` holds something.
        ValueError: what learned is more, or less, than an adapter holds; values too large for `dtype`.
        OSError: it cannot be written (disk full, no permission); nothing is left of it then.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; wanted {OPTIONS['dtype']}")
    output = output.expanduser().resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output {output} is there already and not empty; choose another folder")
    source = read_source(checkpoint)
    config = source.config
    if adapter and config.lora is None and not config.train_rows:
        raise ValueError(
            f"{source.checkpoint}: the run had neither lora nor train_rows, so there is no adapter; without --adapter "
            "the whole model is written"
        )
    model, tokenizer = rebuild(source)
    made = Exported(
        config, source.state, source.checkpoint.parent, source.kind, adapter, dtype,
        len(model.get_input_embeddings().weight),
    )  # fmt: skip
    with whole_or_absent(output) as draft:
        if adapter:
            _write_adapter(model, tokenizer, source, draft, DTYPES[dtype])
        else:
            _write_whole(model, draft, DTYPES[dtype])
        tokenizer.save_pretrained(draft)
        (draft / "README.md").write_text(model_card(made, output.name), encoding="utf-8")
    return output


def read_source(folder: Path) -> Source:
    """The checkpoint that the folder is, or of an output_dir the newest whole one, or the best where the run ended with
    that (`load_best_model_at_end`); checked file by file.

    Raises:
        FileNotFoundError: no such folder, or no checkpoint in it.
        DamagedCheckpoint: names the file; of an output_dir, all of them are damaged.
        ValueError: its config is of another version of fastft.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} not found; a checkpoint's folder or a run's output_dir is wanted")
    found = list(reversed(checkpoints(folder))) or [folder]
    reasons = []
    for checkpoint in found:
        try:
            state = read_state(checkpoint)
        except DamagedCheckpoint as error:
            reasons.append(str(error))
            continue
        config = _config(checkpoint, state)
        best = _best_of(folder, config)
        if checkpoint not in (folder, best) and best in found:
            return read_source(best)
        return Source(checkpoint, state, config, model_class(given_tasks(config)))
    raise DamagedCheckpoint("; ".join(reasons))


def _best_of(folder: Path, config: TrainConfig) -> Path:
    """The checkpoint of a run's best evaluation, if it ended with that; else the folder itself."""
    if not config.load_best_model_at_end:
        return folder
    best = Best(config.metric_for_best_model, None, read_log(folder)).step
    return folder if best is None else folder / f"checkpoint-{best}"


def rebuild(source: Source) -> tuple[Any, Any]:
    """The trained model in fp32 and its tokenizer. Rows are in their tables; LoRA is around the model still.

    Raises:
        ValueError, OSError, ImportError: as `load_model`, `adapt` and `load_trained`.
    """
    checkpoint, config = source.checkpoint, source.config
    whole = is_whole(checkpoint)
    model, tokenizer = _loaded(str(checkpoint) if whole else config.model, source, config.seed)
    if not whole:
        model, rows = adapt(model, tokenizer, config, resumed=False)
        load_trained(model, checkpoint)
        if rows is not None:
            rows.merge()
    return model.eval(), tokenizer


def _loaded(name: str, source: Source, seed: int) -> tuple[Any, Any]:
    """seed: of a head that the model comes without; in training it is the run's."""
    code = source.config.trust_remote_code
    tokenizer = load_tokenizer(name, trust_remote_code=code)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_model(name, torch.float32, source.kind, trust_remote_code=code), tokenizer


def _write_whole(model: Any, folder: Path, dtype: torch.dtype) -> None:
    if is_adapted(model):
        model = model.merge_and_unload(safe_merge=True)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            _cast(name, value, dtype)
    model.to(dtype).save_pretrained(folder)


def _write_adapter(model: Any, tokenizer: Any, source: Source, folder: Path, dtype: torch.dtype) -> None:
    config = source.config
    wanted = [*(config.train_rows or ()), *([NEW] if config.new_tokens else [])]
    ids = row_ids(tokenizer, replace(config, train_rows=wanted or None))
    if others := _others(model, ids, source):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(
            f"{source.checkpoint}: an adapter cannot hold all of this model: {', '.join(others[:3])}{more} learned "
            "too, or were drawn anew as the base model lacks them. Without --adapter the whole model is written"
        )
    if config.lora is not None:
        model.save_pretrained(folder, save_embedding_layers=False)
    if ids:
        TrainableRows(model, ids).save_adapter(folder)
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**told, "base_model_name_or_path": config.model}, indent=2) + "\n")
    weights = {name: _cast(name, value, dtype) for name, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _others(model: Any, ids: list[int], source: Source) -> list[str]:
    """What is neither the adapter's nor a row of it, and not as in the base model with its new tokens."""
    base, tokenizer = _loaded(source.config.model, source, source.config.seed + 1)
    base, _ = adapt(base, tokenizer, replace(source.config, train_rows=None), resumed=False)
    for table, trained in zip(tables_of(base), tables_of(model), strict=True):
        if table.weight.shape == trained.weight.shape:
            table.weight.data[ids] = trained.weight.data[ids]
    now, before = model.state_dict(), base.state_dict()
    held = {name for name in now if OF_ADAPTER.search(name)}
    return [n for n in now if n not in held and not (n in before and torch.equal(now[n], before[n]))]


def _cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    cast = value.to(dtype)
    if not cast.isfinite().all():
        raise ValueError(
            f"{name} has values that are no numbers or too large for {str(dtype).removeprefix('torch.')}, whose "
            f"largest is {torch.finfo(dtype).max:g}: try bfloat16"
        )
    return cast


def _config(checkpoint: Path, state: dict[str, Any]) -> TrainConfig:
    """The run's config out of JSON, which has no whole numbers for keys."""
    given = dict(state.get("config", {}))
    unknown = sorted(given.keys() - FIELDS.keys())
    if unknown or "model" not in given:
        raise ValueError(
            f"{checkpoint}: its config is of another version of fastft: "
            + (f"{unknown[0]!r} is no setting here" if unknown else "it names no model")
        )
    if given.get("unfreeze"):
        given["unfreeze"] = {int(step): names for step, names in given["unfreeze"].items()}
    return TrainConfig(**given)


def _read_words(argv: Sequence[str]) -> tuple[tuple[Path, Path], dict[str, str]]:
    places: list[str] = []
    options: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--"):
            places.append(word)
            continue
        name, given, value = word.removeprefix("--").partition("=")
        if name not in OPTIONS:
            raise ValueError(unknown_key(name, OPTIONS))
        options[name] = value if given else next(islice(words, 1), "")
        if options[name] not in OPTIONS[name].split(" | "):
            raise ValueError(f"--{name} is {options[name] or 'nothing'}; wanted {OPTIONS[name]}")
    if len(places) != 2:
        raise ValueError(f"got {' '.join(places) or 'no folders'}; wanted: fastft export CHECKPOINT OUTPUT")
    return (Path(places[0]), Path(places[1])), options
