import importlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import fastft
from fastft.hf.lazy_logits import LazyLogits
from fastft.hf.pretrained import load_model, load_outline, load_tokenizer
from fastft.trainer import TrainConfig
from fastft.trainer.adapt import (
    TRAINED,
    adapt,
    check_lora,
    extended,
    is_whole,
    load_trained,
    make_room,
    row_ids,
    save_model,
)
from fastft.trainer.given import given_tasks, model_class

from .adapted import IGNORED, LORA, NEW, batch_of, config_for, fresh, learn, save_gpt2, save_untied, state_of
from .conftest import assert_same

pytestmark = [pytest.mark.filterwarnings(words) for words in IGNORED]
Folders = dict[str, str]
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def folders(model_dir: str, bert_dir: str, t5_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = tmp_path_factory.mktemp("adapted")
    untied, gpt2 = save_untied(made / "untied", model_dir), save_gpt2(made / "gpt2", model_dir)
    return {"llama": model_dir, "untied": untied, "gpt2": gpt2, "bert": bert_dir, "t5": t5_dir}


@pytest.fixture
def config_of(folders: Folders, tmp_path: Path) -> MakeConfig:
    return lambda kind, **changes: config_for(kind, folders[kind], tmp_path / "run", **changes)


KINDS = ("llama", "untied", "gpt2", "bert", "t5")


@pytest.mark.parametrize("kind", KINDS)
def test_data_sees_the_ids_that_the_model_will_have(config_of: MakeConfig, kind: str) -> None:
    config = config_of(kind, new_tokens=NEW)
    plain = load_tokenizer(config.model)
    before = plain.get_vocab()
    early = extended(plain, NEW)
    assert plain.get_vocab() == before
    assert early.get_vocab().keys() == {*before, *NEW}
    model, tokenizer, _ = fresh(config)
    assert early.get_vocab() == tokenizer.get_vocab()
    assert early("the <think> sky")["input_ids"] == tokenizer("the <think> sky")["input_ids"]
    assert early.get_vocab()["<think>"] in early("the <think> sky")["input_ids"]
    outline, _ = load_outline(config.model, model_class(given_tasks(config)))
    make_room(outline, early)
    assert max(early.get_vocab().values()) < len(outline.get_input_embeddings().weight)
    make_room(outline, early)  # there is room
    assert len(outline.get_input_embeddings().weight) == len(model.get_input_embeddings().weight)
    assert extended(plain, None) is plain


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({"<eos>": "mean"}, r"'<eos>' is in the tokenizer already \(id 0\).*train_rows: \['<eos>'\]"),
        ({"<think>": "median"}, "new_tokens: '<think>': source 'median' is unknown"),
        ({"<think>": "copy:the sky"}, "'<think>': 'the sky' is .* not one token; 'text:the sky' averages them"),
        ({" ": "mean"}, "visible character"),
    ],
)
def test_new_tokens_that_cannot_be_meant(model_dir: str, tokens: dict[str, str], words: str) -> None:
    tokenizer = load_tokenizer(model_dir)
    before = len(tokenizer)
    with pytest.raises(ValueError, match=words):
        extended(tokenizer, tokens)
    assert len(tokenizer) == before


def test_rows_by_name_by_text_and_all_new_ones(config_of: MakeConfig) -> None:
    config = config_of("bert", new_tokens=NEW, train_rows=["blue", "new", "[MASK]", "<think>"])
    tokenizer = extended(load_tokenizer(config.model), NEW)
    known = tokenizer.get_vocab()
    assert row_ids(tokenizer, config) == [known[name] for name in ("blue", "<think>", "<end>", "[MASK]")]
    llama = config_of("llama", train_rows=[" the"])  # as text: its name in the vocabulary begins otherwise
    bpe = load_tokenizer(llama.model)
    assert " the" not in bpe.get_vocab()
    assert row_ids(bpe, llama) == bpe(" the")["input_ids"]
    assert row_ids(bpe, replace(llama, train_rows=None)) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["new"], "'new', which stands for all of new_tokens, and new_tokens is not given"),
        (["blue sky"], r"'blue sky' is \['blue', 'sky'\], not one token"),
        (["zzz"], "the tokenizer has no tokens for 'zzz'"),
        ([""], "the tokenizer has no tokens for ''"),
    ],
)
def test_rows_that_are_not_one_token(config_of: MakeConfig, rows: list[str], words: str) -> None:
    config = config_of("bert", train_rows=rows)
    with pytest.raises(ValueError, match=words):
        row_ids(load_tokenizer(config.model), config)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_meant_to_learns(config_of: MakeConfig, kind: str) -> None:
    """LoRA and rows: the rest keeps its bits, though weights decay."""
    config = config_of(kind, new_tokens=NEW, train_rows=["new"], lora=LORA)
    model, tokenizer, rows = fresh(config)
    ids = [tokenizer.get_vocab()[token] for token in NEW]
    before = state_of(model)
    learn(model, tokenizer)
    after, table = state_of(model), model.get_base_model().get_input_embeddings()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    tables = {name for name in after if len(after[name]) == len(table.weight) and not name.endswith("trainable_rows")}
    assert learning <= changed | {name for name in learning if "lora_A" in name}  # whose gradient starts at 0
    assert changed <= learning | tables
    assert changed & tables
    others = [row for row in range(len(table.weight)) if row not in ids]
    for name in tables:
        assert torch.equal(after[name][others], before[name][others])
    assert rows is not None
    assert rows.token_ids == ids


@pytest.mark.parametrize("kind", ["llama", "untied", "bert", "t5"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["rows", "lora"])
def test_fused_and_with_recomputed_activations(config_of: MakeConfig, kind: str, lora: Any) -> None:
    config = config_of(kind, new_tokens=NEW, train_rows=["new"], lora=lora)
    found = []
    for fused in (False, True):
        model, tokenizer, _ = fresh(config)
        if fused:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            fastft.patch(model)
        model.train()
        torch.manual_seed(0)
        output = model(**batch_of(tokenizer))
        output.loss.backward()
        assert isinstance(getattr(output, "logits", None), LazyLogits) is fused
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any(name.endswith("trainable_rows") for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "new": {"new_tokens": NEW},
    "rows": {"new_tokens": NEW, "train_rows": ["new"]},
    "lora": {"lora": LORA},
    "lora new": {"lora": LORA, "new_tokens": NEW},
    "lora rows": {"lora": LORA, "new_tokens": NEW, "train_rows": ["new"]},
}


@pytest.mark.parametrize("kind", ["llama", "untied"])
@pytest.mark.parametrize("run", RUNS)
def test_saved_and_loaded_is_the_same_bit_by_bit(config_of: MakeConfig, kind: str, run: str, tmp_path: Path) -> None:
    config = config_of(kind, **RUNS[run])
    model, tokenizer, _ = fresh(config)
    if config.lora is not None:  # a part of the base that learns too
        model.get_base_model().model.layers[1].mlp.requires_grad_(True)
        frozen = next(name for name, _ in model.named_parameters() if "lora_A" in name)
        model.get_parameter(frozen).requires_grad_(False)
    learn(model, tokenizer)
    save_model(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert is_whole(tmp_path / "saved") is (config.lora is None)
    if config.lora is None:
        again = load_model(str(tmp_path / "saved"), torch.float32)
        again, _ = adapt(again, load_tokenizer(str(tmp_path / "saved")), config, resumed=True)
    else:
        again, _, _ = fresh(config)
        load_trained(again, tmp_path / "saved")
    assert_same(state_of(model), state_of(again))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_adapters_each_time(config_of: MakeConfig, kind: str) -> None:
    config = config_of(kind, new_tokens=NEW, lora=LORA)
    one, again = fresh(config, 1)[0], fresh(config, 2)[0]
    assert_same(state_of(one), state_of(again))
    other, tokenizer, _ = fresh(replace(config, seed=9), 1)
    adapters = [name for name, _ in other.named_parameters() if "lora_A" in name]
    assert not any(torch.equal(other.get_parameter(name), one.get_parameter(name)) for name in adapters)
    noise, copied = (tokenizer.get_vocab()[token] for token in ("<end>", "<think>"))
    table, drawn = (model.get_base_model().get_input_embeddings().weight for model in (one, other))
    assert not torch.equal(table[noise], drawn[noise])
    assert torch.equal(table[copied], drawn[copied])


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_a_checkpoint(config_of: MakeConfig, kind: str, tmp_path: Path) -> None:
    config = config_of(kind, lora=LORA)
    model, tokenizer, _ = fresh(config)
    learn(model, tokenizer)
    save_model(model, tmp_path / "saved")
    base = load_model(config.model, torch.float32, model_class(given_tasks(config)))
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "saved")).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch_of(tokenizer)).logits, model(**batch_of(tokenizer)).logits)
    kinds = {"bert": None, "t5": "SEQ_2_SEQ_LM"}
    assert loaded.peft_config["default"].task_type == kinds.get(kind, "CAUSAL_LM")


def test_names_that_are_saved_besides(config_of: MakeConfig, tmp_path: Path) -> None:
    model, _, _ = fresh(config_of("llama", lora=LORA))
    name = "base_model.model.model.norm.weight"
    save_model(model, tmp_path, [name])
    assert torch.equal(load_file(tmp_path / TRAINED)[name], model.get_parameter(name))
    with pytest.raises(ValueError, match="no parameter 'norm'"):
        save_model(model, tmp_path, ["norm"])
    with torch.no_grad():
        model.get_parameter(name).fill_(7)
    load_trained(model, tmp_path)
    assert not (model.get_parameter(name) == 7).any()


def test_a_gathered_state_is_what_is_saved(config_of: MakeConfig, tmp_path: Path) -> None:
    model, _, _ = fresh(config_of("llama", lora=LORA))
    state = {name: torch.full_like(value, 3.0) for name, value in model.state_dict().items()}
    save_model(model, tmp_path, state_dict=state)
    for file in (TRAINED, "adapter_model.safetensors"):
        assert all((value == 3).all() for value in load_file(tmp_path / file).values())


def test_what_does_not_fit_is_refused(config_of: MakeConfig, tmp_path: Path) -> None:
    config = config_of("llama", lora=LORA)
    model, _, _ = fresh(config)
    save_model(model, tmp_path)
    before, saved = state_of(model), load_file(tmp_path / TRAINED)
    name = next(iter(saved))

    def put(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, tmp_path / TRAINED)

    put({key: value + 1 for key, value in saved.items() if key != name})
    with pytest.raises(ValueError, match=rf"does not fit the model: it lacks {name}\. Was it"):
        load_trained(model, tmp_path)
    put({**{key: value + 1 for key, value in saved.items()}, "other": torch.zeros(1)})
    with pytest.raises(ValueError, match="the model has no other"):
        load_trained(model, tmp_path)
    put({key: value.T.contiguous() for key, value in saved.items()})
    with pytest.raises(ValueError, match=r"is \(32, 2\) float32 there and \(2, 32\) float32 in the model.* more\. Was"):
        load_trained(model, tmp_path)
    put({key: value.bfloat16() for key, value in saved.items()})
    with pytest.raises(ValueError, match=r"bfloat16 there and .* float32 in the model"):
        load_trained(model, tmp_path)
    put(saved)
    with_rows, _, _ = fresh(replace(config, train_rows=["<eos>"]))
    with pytest.raises(ValueError, match=r"does not fit the model: it lacks .*trainable_rows\."):
        load_trained(with_rows, tmp_path)
    assert_same(before, state_of(model))
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"trained\.safetensors not found"):
        load_trained(model, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 4}, "lora: unknown key 'rank': did you mean 'r'"),
        ({"lora_aplha": 4}, "lora: unknown key 'lora_aplha': did you mean 'lora_alpha'"),
        ({"r": 0}, "lora: .*`r` should be a positive integer"),
        ({"target_modules": ["nowhere"]}, "lora: Target modules .*nowhere.* all-linear takes every linear layer"),
    ],
)
def test_lora_that_cannot_be_meant(config_of: MakeConfig, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fresh(config_of("llama", lora=arguments))


def test_without_peft_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *args: Any) -> Any:
        raise ImportError(f"No module named {name!r}")

    check_lora(None)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="lora needs peft: pip install peft"):
        check_lora({"r": 4})
