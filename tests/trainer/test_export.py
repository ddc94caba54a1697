import json
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from fastft.__main__ import main
from fastft.trainer.saving.card import Exported, model_card
from fastft.trainer.saving.checkpoint import DamagedCheckpoint, save
from fastft.trainer.saving.export import export, read_source

from . import adapted
from .adapted import IGNORED, LORA, NEW, checkpoint_of, config_for, fresh, logits_of, save_gpt2, save_untied
from .test_adapt import RUNS

pytestmark = [pytest.mark.filterwarnings(words) for words in IGNORED]
CLASSES = {"bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM"}
ROWS_ALONE = {"new_tokens": NEW, "train_rows": ["new"], "freeze": ["*"]}


@pytest.fixture(scope="module")
def folders(model_dir: str, bert_dir: str, t5_dir: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = tmp_path_factory.mktemp("exported")
    untied, gpt2 = save_untied(made / "untied", model_dir), save_gpt2(made / "gpt2", model_dir)
    return {"llama": model_dir, "untied": untied, "gpt2": gpt2, "bert": bert_dir, "t5": t5_dir}


def loaded(kind: str, folder: Any, **options: Any) -> Any:
    return getattr(transformers, CLASSES.get(kind, "AutoModelForCausalLM")).from_pretrained(folder, **options)


@pytest.mark.parametrize("kind", ["llama", "untied", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("run", RUNS)
def test_plain_transformers_has_equal_logits(folders: dict[str, str], kind: str, run: str, tmp_path: Path) -> None:
    config = config_for(kind, folders[kind], tmp_path / "run", **RUNS[run])
    checkpoint, want = checkpoint_of(config)
    folder = export(checkpoint, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = loaded(kind, folder)
    assert model.dtype == torch.float32
    got = logits_of(model, tokenizer)
    assert not torch.allclose(got, logits_of(*fresh(config)[:2]), atol=1e-3)  # it has learned
    if config.lora is None:
        assert torch.equal(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert set(NEW) <= set(tokenizer.get_vocab()) or config.new_tokens is None
    assert not any("lora" in name or "trainable" in name for name in load_file(folder / "model.safetensors"))
    assert (folder / "generation_config.json").exists() is model.can_generate()


@pytest.mark.parametrize("kind", ["llama", "untied", "gpt2", "t5"])
@pytest.mark.parametrize("run", ["lora", "lora new", "lora rows", "rows alone"])
def test_peft_has_equal_logits(folders: dict[str, str], kind: str, run: str, tmp_path: Path) -> None:
    config = config_for(kind, folders[kind], tmp_path / "run", **{**RUNS, "rows alone": ROWS_ALONE}[run])
    checkpoint, want = checkpoint_of(config)
    folder = export(checkpoint, tmp_path / "out", adapter=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    code = code.replace(f'"{Path(config.model).name}"', repr(config.model))
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names["model"], peft.PeftModel)
    torch.testing.assert_close(logits_of(names["model"], tokenizer), want, rtol=1e-5, atol=1e-5)
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == config.model


def test_an_adapter_that_would_leave_something_out(folders: dict[str, str], tmp_path: Path) -> None:
    def refused(number: int, kind: str, words: str, **changes: Any) -> None:
        config = config_for(kind, folders[kind], tmp_path / f"run{number}", **changes)
        checkpoint, _ = checkpoint_of(config)
        with pytest.raises(ValueError, match=words):
            export(checkpoint, tmp_path / "out", adapter=True)
        assert not list(tmp_path.glob("*out*"))

    refused(1, "llama", r"neither lora nor train_rows.*without --adapter")
    refused(2, "llama", r"cannot hold all of this model: model\..* and \d+ more learned too", train_rows=["<eos>"])
    refused(3, "bert", "PEFT drops the bias of a head", lora=LORA, train_rows=["blue"])


def test_an_unfrozen_base_is_no_adapter_but_a_whole_model(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for("llama", folders["llama"], tmp_path / "run", lora=LORA)
    plain = adapted.learn

    def learn(model: Any, tokenizer: Any) -> None:
        model.get_parameter("base_model.model.model.norm.weight").requires_grad_(True)
        plain(model, tokenizer)

    monkeypatch.setattr(adapted, "learn", learn)
    checkpoint, want = checkpoint_of(config)
    with pytest.raises(
        ValueError, match=r"cannot hold all of this model: base_model\.model\.model\.norm\.weight learned"
    ):
        export(checkpoint, tmp_path / "adapter", adapter=True)
    folder = export(checkpoint, tmp_path / "out")
    got = logits_of(loaded("llama", folder), AutoTokenizer.from_pretrained(folder))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("adapter", [False, True])
def test_other_types(folders: dict[str, str], dtype: str, adapter: bool, tmp_path: Path) -> None:
    config = config_for("untied", folders["untied"], tmp_path / "run", **RUNS["lora rows"])
    checkpoint, want = checkpoint_of(config)
    folder = export(checkpoint, tmp_path / "out", dtype=dtype, adapter=adapter)
    with safe_open(folder / ("adapter_model.safetensors" if adapter else "model.safetensors"), "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {getattr(torch, dtype)}  # noqa: SIM118
    if not adapter:
        model = loaded("untied", folder)
        assert model.dtype == getattr(torch, dtype)
        got = logits_of(model.float(), AutoTokenizer.from_pretrained(folder))
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)


def test_what_float16_cannot_hold(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = loaded("llama", folders["llama"])
    with torch.no_grad():
        model.model.norm.weight[3] = 1e6
    model.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(folders["llama"]).save_pretrained(tmp_path / "large")
    checkpoint, _ = checkpoint_of(config_for("llama", str(tmp_path / "large"), tmp_path / "run"))
    with pytest.raises(ValueError, match=r"model\.norm\.weight has values .* too large for float16, whose largest is"):
        export(checkpoint, tmp_path / "out", dtype="float16")
    assert export(checkpoint, tmp_path / "out", dtype="bfloat16")


def test_a_head_that_the_base_comes_without(folders: dict[str, str], tmp_path: Path) -> None:
    """It is drawn from the seed of the run: the whole model has it, and an adapter would not."""
    base: Any = transformers.AutoModel.from_pretrained(folders["bert"])
    base.save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(folders["bert"]).save_pretrained(tmp_path / "headless")
    checkpoint, want = checkpoint_of(config_for("bert", str(tmp_path / "headless"), tmp_path / "run", lora=LORA))
    with pytest.raises(ValueError, match=r"cannot hold all of this model: .*cls\.predictions.* were drawn anew"):
        export(checkpoint, tmp_path / "out", adapter=True)
    folder = export(checkpoint, tmp_path / "out")
    got = logits_of(loaded("bert", folder), AutoTokenizer.from_pretrained(folder))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_what_was_to_learn_later_is_no_hindrance(folders: dict[str, str], tmp_path: Path) -> None:
    """Checkpoints hold what `unfreeze` names from the start; an adapter is refused when it has changed."""
    config = config_for("llama", folders["llama"], tmp_path / "run", lora=LORA)
    model, tokenizer, _ = fresh(config)
    later, facts = ["base_model.model.model.norm.weight"], {"config": asdict(config)}
    checkpoint = save(tmp_path / "run", 2, model, tokenizer, [], facts, learners=later)
    assert set(later) < load_file(checkpoint / "trained.safetensors").keys()
    assert export(checkpoint, tmp_path / "out", adapter=True)


@pytest.fixture
def checkpoint(folders: dict[str, str], tmp_path: Path) -> Path:
    return checkpoint_of(config_for("llama", folders["llama"], tmp_path / "run", lora=LORA, learning_rate=1e-3))[0]


def test_a_run_is_its_newest_whole_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    run = checkpoint.parent
    assert read_source(run).checkpoint == checkpoint
    shutil.copytree(checkpoint, run / "checkpoint-10")
    assert read_source(run).checkpoint == run / "checkpoint-10"
    (run / "checkpoint-10" / "trained.safetensors").unlink()
    assert read_source(run).checkpoint == checkpoint
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint-10: trained\.safetensors is missing"):
        read_source(run / "checkpoint-10")
    (checkpoint / "manifest.json").write_text("{")
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint-10: .*checkpoint-2: manifest.json is missing or damaged"):
        export(run, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="none not found"):
        export(run / "none", tmp_path / "out")


def test_an_output_that_holds_something_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir()
    (full / "mine").write_text("mine")
    file.write_text("mine")
    empty.mkdir()
    for place in (full, file):
        with pytest.raises(FileExistsError, match="not empty; choose another"):
            export(checkpoint, place)
    assert [path.name for path in full.iterdir()] == ["mine"]
    (tmp_path / ".empty.draft").mkdir()  # of a killed process
    (tmp_path / ".empty.draft" / "model.safetensors").write_text("half")
    export(checkpoint, empty)
    assert (empty / "model.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: it fails in the same place."""
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "fastft", "export", str(checkpoint), str(tmp_path / "deep" / "out")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=300)
    assert done.returncode == 2
    assert "fastft: [Errno 27] File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "deep").iterdir())
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_a_config_of_another_version(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    for config, words in (({**state["config"], "magic": 1}, "'magic' is no setting here"), ({}, "names no model")):
        monkeypatch.setattr(
            "fastft.trainer.saving.export.read_state", lambda path, now=config: {**state, "config": now}
        )
        with pytest.raises(ValueError, match=words):
            export(checkpoint, tmp_path / "out")
    steps = {"unfreeze": {"5": ["*"]}}  # JSON has no numbers for keys
    monkeypatch.setattr(
        "fastft.trainer.saving.export.read_state", lambda path: {**state, "config": {**state["config"], **steps}}
    )
    assert read_source(checkpoint).config.unfreeze == {5: ["*"]}


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output
"""


@pytest.mark.parametrize("lora", [None, LORA])
def test_code_of_a_model_runs_only_if_the_run_trusted_it(
    folders: dict[str, str], lora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    own = shutil.copytree(folders["llama"], tmp_path / f"own{lora is None}")
    (own / "own.py").write_text(CODE)
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (own / "config.json").write_text(json.dumps(config))
    run = config_for("llama", str(own), tmp_path / "run", trust_remote_code=True, lora=lora)
    checkpoint, want = checkpoint_of(run)
    folder = export(checkpoint, tmp_path / "out")
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    model = loaded("llama", folder, trust_remote_code=True)
    torch.testing.assert_close(logits_of(model, AutoTokenizer.from_pretrained(folder)), want, rtol=1e-4, atol=1e-4)
    wary = config_for("llama", str(own), tmp_path / "wary", lora=lora)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["config"]["trust_remote_code"] = wary.trust_remote_code
    monkeypatch.setattr("fastft.trainer.saving.export.read_state", lambda path: state)
    with pytest.raises(ValueError, match="cannot be loaded"):
        export(checkpoint, tmp_path / "not")


def test_the_card_has_the_facts(checkpoint: Path, tmp_path: Path) -> None:
    log = [
        {"step": 0, "eval_loss": 5.5, "perplexity": 244.7},
        {"step": 1, "loss": 5.25},
        {"step": 2, "loss": 4.125},
        {"step": 2, "eval_loss": 4.5, "perplexity": 90.0},
        {"step": 3, "eval_loss": 9.9},
    ]
    run = checkpoint.parent
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log) + '{"step": 3, "lo')
    (run / "report.json").write_text(json.dumps({"device": "a | CPU", "precision": "fp32", "max_steps": 7}))
    text = (export(checkpoint, tmp_path / "my-model") / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["fastft", "clm", "lora"],
    }  # fmt: skip
    for line in (
        "# my-model",
        "| steps | 2 of 7 |",
        "| tokens | 1,234 seen, 56 learned |",
        "| training loss | 5.2500 before, 4.1250 after |",
        "| held-out loss | 5.5000 before, 4.5000 after |",
        "| perplexity | 244.7000 before, 90.0000 after |",
        "| device | a \\| CPU |",
        "| data | colours.jsonl |",
    ):
        assert f"\n{line}\n" in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == {"learning_rate": 1e-3, "lora": LORA}
    assert f"transformers {transformers.__version__}" in text
    assert str(tmp_path) not in text
    assert str(checkpoint) not in text


def test_the_card_of_a_model_and_data_from_the_hub(checkpoint: Path, tmp_path: Path) -> None:
    source = read_source(checkpoint)
    config = config_for("llama", "org/base-1.5", tmp_path / "x", tasks=[
        {"objective": "clm", "data": "hf:org/texts:en"}, {"objective": "prefix_lm", "data": str(tmp_path / "a.jsonl")},
    ], max_steps=3)  # fmt: skip
    made = Exported(config, source.state, tmp_path, source.kind, True, "float32", 9)
    text = model_card(made, "out")
    assert ModelCard(text).data.to_dict() == {
        "base_model": "org/base-1.5", "base_model_relation": "adapter", "datasets": ["org/texts"],
        "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["fastft", "clm", "prefix_lm"],
    }  # fmt: skip
    assert 'from_pretrained("org/base-1.5")' in text
    assert "hf:org/texts:en + a.jsonl" in text
    assert str(tmp_path) not in text


def test_the_adapter_of_a_built_in_model_tells_how_to_load_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTFT_CACHE", str(tmp_path / "cache"))
    checkpoint, want = checkpoint_of(config_for("t5", "builtin:byt5-tiny", tmp_path / "run", lora=LORA))
    folder = export(checkpoint, tmp_path / "out", adapter=True)
    text = (folder / "README.md").read_text()
    assert "base_model" not in ModelCard(text).data.to_dict()  # random numbers are not on the hub
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder)), names)
    torch.testing.assert_close(logits_of(names["model"], names["tokenizer"]), want, rtol=1e-5, atol=1e-5)


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert "--adapter true" in capsys.readouterr().out
    out = str(tmp_path / "out")
    for words, message in (
        ([str(checkpoint)], "wanted: fastft export CHECKPOINT OUTPUT"),
        ([str(checkpoint), out, "--dtyp", "bfloat16"], "unknown key 'dtyp': did you mean 'dtype'"),
        ([str(checkpoint), out, "--dtype", "int8"], "--dtype is int8; wanted float32 | bfloat16 | float16"),
        ([str(checkpoint), out, "--adapter"], "--adapter is nothing; wanted true | false"),
    ):
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    assert not Path(out).exists()
    assert main(["export", str(checkpoint.parent), out, "--dtype=bfloat16", "--adapter", "true"]) == 0
    assert f"written: {out}" in capsys.readouterr().out.replace("\n", "")
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in Path(out).iterdir()}
