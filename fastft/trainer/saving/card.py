"""README.md of an exported model: what was trained, from what, on what, how it went, and how to load it."""

import json
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fastft.trainer.config import FIELDS, TrainConfig
from fastft.trainer.given import data_of, given_tasks
from fastft.trainer.reporting.log import read_log

HUB_IDS = {  # of built-in models
    "builtin:smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "builtin:minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
PIPELINES = {"AutoModelForCausalLM": "text-generation", "AutoModelForSeq2SeqLM": "text-generation"}
PLACES = ("model", "train_data", "output_dir", "resume_from_checkpoint")  # said elsewhere, or of one machine alone
PACKAGES = ("fastft", "torch", "transformers", "peft")


class Exported(NamedTuple):
    """What an export is of.

    config, state:   of the run, and trainer_state.json of the checkpoint.
    run:             the run's output_dir, where its log and report are, if they still are.
    kind:            class of transformers that loads the model.
    adapter:         it is a PEFT adapter and not a whole model.
    dtype:           of the weights, as "float32".
    rows:            rows of the input embedding, which an adapter's base model must have.
    """

    config: TrainConfig
    state: Mapping[str, Any]
    run: Path
    kind: str
    adapter: bool
    dtype: str
    rows: int


def model_card(made: Exported, title: str) -> str:
    """Markdown with the YAML front matter that the hub reads. Paths of this machine are shown by their last part."""
    config = made.config
    head = yaml.safe_dump(front_matter(made), sort_keys=False, allow_unicode=True)
    base, learned = shown(config.model), " + ".join(task.config.objective for task in given_tasks(config))
    what = "A PEFT adapter for" if made.adapter else "Fine-tuned from"
    facts = "".join(f"| {name} | {_cell(value)} |\n" for name, value in _facts(made).items())
    settings = yaml.safe_dump(_settings(config), sort_keys=False, allow_unicode=True) if _settings(config) else ""
    return (
        f"---\n{head}---\n\n# {title}\n\n{what} {base} with fastft, by the objective {learned} "
        f"on {shown_data(config)}.\n\n## Load it\n\n"
        f"FOLDER is where this page is, or its name on the hub.\n\n```python\n{_code(made)}```\n\n"
        f"## The run\n\n| | |\n|---|---|\n{facts}\n"
        f"Losses are nats per supervised token.\n\n## Settings that differ from the defaults\n\n"
        f"```yaml\n{settings}```\n\n## Versions\n\n{', '.join(_versions())}\n"
    )


def front_matter(made: Exported) -> dict[str, Any]:
    """base_model is left out where the base is a folder of this machine, as the hub would look for it."""
    config, base = made.config, hub_id(made.config.model)
    tasks = [task.config for task in given_tasks(config)]
    sources = dict.fromkeys(task.train_data for task in tasks if task.train_data)
    datasets = [name for source in sources if source.startswith("hf:") and (name := hub_id(source.split(":")[1]))]
    tags = ["fastft", *dict.fromkeys(task.objective for task in tasks)]
    tags += ["lora"] * (config.lora is not None) + ["trainable-rows"] * bool(config.train_rows)
    return {
        **({"base_model": base, "base_model_relation": "adapter" if made.adapter else "finetune"} if base else {}),
        **({"datasets": datasets} if datasets else {}),
        "library_name": "peft" if made.adapter else "transformers",
        "pipeline_tag": PIPELINES.get(made.kind, "fill-mask"),
        "tags": tags,
    }


def hub_id(name: str) -> str | None:
    """The hub's name for a model or data set, or None for what is only here."""
    name = HUB_IDS.get(name, name)
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None
    return name if is_id and not Path(name).exists() else None


def shown(value: Any) -> Any:
    """A setting without the folders of this machine."""
    if isinstance(value, Mapping):
        return {key: shown(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(part) for part in value]
    if isinstance(value, str) and os.sep in value and hub_id(value) is None:
        path = Path(value).expanduser()
        return path.name if path.is_absolute() or path.exists() else value
    return value


def shown_data(config: TrainConfig) -> str:
    return " + ".join(shown(source) for source in data_of(config).split(" + "))


def _settings(config: TrainConfig) -> dict[str, Any]:
    given = {name: getattr(config, name) for name in FIELDS if name not in PLACES}
    default = {name: list(f.default) if isinstance(f.default, tuple) else f.default for name, f in FIELDS.items()}
    return {name: shown(value) for name, value in given.items() if value != default[name]}


def _facts(made: Exported) -> dict[str, str]:
    """What is known of the run up to this checkpoint; what was not logged is left out."""
    step, total, report = int(made.state["step"]), made.state.get("total", {}), _json(made.run / "report.json")
    records = [record for record in read_log(made.run) if record.get("step", step + 1) <= step]
    losses = [record["loss"] for record in records if "loss" in record]
    planned = report.get("max_steps")
    facts = {
        "base model": shown(made.config.model),
        "objective": " + ".join(task.config.objective for task in given_tasks(made.config)),
        "data": shown_data(made.config),
        "steps": f"{step:,}" + (f" of {planned:,}" if planned else ""),
    }
    if total:
        facts["tokens"] = f"{total['tokens']:,} seen, {total['supervised_tokens']:,} learned"
    if losses:
        facts["training loss"] = _course(losses)
    for name, key in (("held-out loss", "eval_loss"), ("perplexity", "perplexity"), ("word error rate", "error_rate")):
        if found := [record[key] for record in records if record.get(key) is not None]:
            facts[name] = _course(found)
    facts |= {name: report[name] for name in ("device", "precision") if report.get(name)}
    facts["weights"] = f"{made.dtype}, {'an adapter' if made.adapter else 'whole model'}"
    return facts


def _course(values: list[float]) -> str:
    return f"{values[0]:.4f}" if len(values) == 1 else f"{values[0]:.4f} before, {values[-1]:.4f} after"


def _code(made: Exported) -> str:
    """Python that loads what was exported."""
    code = ", trust_remote_code=True" if made.config.trust_remote_code else ""
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{code})\n'
    both = f"from transformers import {', '.join(sorted((made.kind, 'AutoTokenizer')))}\n"
    if not made.adapter:
        return f'{both}\n{tokenizer}model = {made.kind}.from_pretrained("FOLDER"{code})\n'
    base, first = made.config.model, "from peft import PeftModel\n"
    model = f'model = {made.kind}.from_pretrained("{shown(base)}"{code})\n'
    if base.startswith("builtin:"):  # not bit by bit what the hub has
        first = f"import torch\n{first}"
        both = "from transformers import AutoTokenizer\n\nfrom fastft.hf.pretrained import load_model\n"
        model = f'model = load_model("{base}", torch.float32, "{made.kind}")\n'
    if made.config.new_tokens:
        model += f"model.resize_token_embeddings({made.rows}, mean_resizing=False)\n"
    return f'{first}{both}\n{tokenizer}{model}model = PeftModel.from_pretrained(model, "FOLDER")\n'


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # a run that was stopped has none
        return {}
