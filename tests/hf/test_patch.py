"""Patching and unpatching: what is refused, what is warned about, and models that change, are copied or adapted."""

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from tiny_models import BERT, VOCAB, assert_equal, assert_same, batch_for, model_and_batch, run
from torch import Tensor, nn

from fastft.hf import patch, unpatch
from fastft.hf.patch import warn_once

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT reads it
    "ignore:Version v4.12.0:FutureWarning",
)


@pytest.fixture(autouse=True)
def _warnings_of_each_test() -> Iterator[None]:
    warn_once.cache_clear()
    yield
    warn_once.cache_clear()


def test_patch_returns_the_model_and_is_undone() -> None:
    model, batch = model_and_batch("llama")
    other, _ = model_and_batch("llama")
    want = run(model, batch)
    state = copy.deepcopy(model.state_dict())
    assert patch(model) is model
    assert patch(model) is model  # twice is once
    assert len(model._forward_hooks) == 1
    assert_same(want, run(model, batch))
    assert isinstance(model.lm_head, nn.Linear)
    assert type(other(**batch).logits) is Tensor  # only this instance
    assert unpatch(model) is model
    assert unpatch(model) is model  # not patched: left as it is
    assert type(model.lm_head) is nn.Linear
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert vars(model).keys() == vars(other).keys()
    assert type(model(**batch).logits) is Tensor
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


def test_importing_is_light() -> None:
    code = "import sys, fastft.hf; print([m for m in ('transformers', 'peft', 'torch._dynamo') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


def test_two_patched_models() -> None:
    models = [model_and_batch(name) for name in ("llama", "t5")]
    wants = [run(model, batch) for model, batch in models]
    for model, _ in models:
        patch(model).zero_grad()
    outputs = [model(**batch) for model, batch in models]
    sum(output.loss for output in outputs).backward()
    for (model, _), want, output in zip(models, wants, outputs, strict=True):
        assert_same(want, (output, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda: hf.BertModel(hf.BertConfig(**BERT)), ValueError, "cannot patch BertModel: it has no output embedding"),
        (
            lambda: hf.FSMTForConditionalGeneration(
                hf.FSMTConfig(
                    langs=["en", "de"], src_vocab_size=9, tgt_vocab_size=9, d_model=8, encoder_layers=1,
                    decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=8,
                    decoder_ffn_dim=8,
                )
            ),
            ValueError,
            r"cannot patch FSMTForConditionalGeneration: .* Embedding, not a plain torch.nn.Linear.*linear_cross_",
        ),
        (lambda: nn.Linear(2, 2), TypeError, "model is a Linear; expected a transformers.PreTrainedModel"),
        (lambda: "gpt2", TypeError, "model is a str; expected a transformers.PreTrainedModel"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_patched(model: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        patch(model())


def test_unpatch_wants_a_module() -> None:
    with pytest.raises(TypeError, match=r"model is a str; expected a torch\.nn.Module"):
        unpatch("gpt2")  # type: ignore[type-var]


def test_accelerate_hooks_are_refused() -> None:
    model, _ = model_and_batch("llama")
    add_hook_to_module(model.lm_head, AlignDevicesHook(execution_device="cpu"))
    with pytest.raises(ValueError, match="forward of its output embedding was replaced"):
        patch(model)


def warned(model: Any, batch: dict[str, Tensor]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(**batch)
        model(**batch)
    return [str(w.message) for w in caught if "not fused" in str(w.message)]


def test_a_head_that_is_never_called_is_named_once() -> None:
    config = hf.MobileBertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        embedding_size=8, true_hidden_size=16, intra_bottleneck_size=16,
    )  # fmt: skip
    model, batch = hf.MobileBertForMaskedLM(config).eval(), batch_for("mobilebert")
    want = run(model, batch)
    (message,) = warned(patch(model), batch)
    assert "MobileBertForMaskedLM is not fused: its head was not called" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(want, run(model, batch))
        warn_once.cache_clear()
        model(batch["input_ids"])  # no labels, no warning


def test_a_loss_from_other_operations_is_right_and_named_once() -> None:
    config = hf.ProphetNetConfig(
        vocab_size=VOCAB, hidden_size=16, num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=2,
        num_decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, ngram=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, batch = hf.ProphetNetForConditionalGeneration(config), batch_for("prophetnet")
    want = run(model, batch)
    (message,) = warned(patch(model), batch)
    assert "ProphetNetForConditionalGeneration is not fused" in message
    assert_equal(want, run(model, batch))


def test_fused_losses_do_not_warn() -> None:
    for name in ("llama", "bert_pretraining", "t5", "encoder_decoder"):
        model, batch = model_and_batch(name)
        assert not warned(patch(model), batch)
        assert not warned(model.eval(), batch)


@pytest.mark.parametrize("name", ["llama", "qwen3", "bert", "bart", "t5"])
def test_resize_token_embeddings(name: str) -> None:
    model, batch = model_and_batch(name)
    patch(model).resize_token_embeddings(VOCAB + 13, mean_resizing=False)
    batch["labels"][1, 3] = VOCAB + 12
    got = run(model, batch)
    assert got[0].logits.shape[-1] == VOCAB + 13
    assert_same(run(unpatch(model), batch), got)


def test_tied_weights_stay_tied() -> None:
    model, batch = model_and_batch("qwen3")
    model = patch(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run(model, batch)
    optimizer.step()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.tie_weights()
    assert_same(run(unpatch(copy.deepcopy(model)), batch), run(model, batch))


def test_copies_and_files(tmp_path: Path) -> None:
    model, batch = model_and_batch("qwen3")
    want = run(model, batch)
    patch(model)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    unpatch(model)
    for other in (twin, loaded):
        assert_same(want, run(other, batch))
        assert type(unpatch(other)(**batch).logits) is Tensor
    patch(model).save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is hf.Qwen3ForCausalLM
    assert type(again.lm_head) is nn.Linear
    assert again(**batch).loss == want[0].loss


def lora(model: nn.Module, **options: Any) -> Any:
    torch.manual_seed(1)
    options = {"target_modules": ["q_proj", "v_proj"], "r": 4, "init_lora_weights": False, **options}
    return get_peft_model(model, LoraConfig(**options))


LORA = {"attention": {}, "all-linear": {"target_modules": "all-linear"}, "new head": {"modules_to_save": ["lm_head"]}}


@pytest.mark.parametrize("order", ["patch first", "adapter first"])
@pytest.mark.parametrize("options", LORA.values(), ids=LORA)
def test_lora_around_the_model(options: dict[str, Any], order: str) -> None:
    model, batch = model_and_batch("llama")
    want = run(lora(copy.deepcopy(model), **options), batch)
    adapted = lora(patch(model), **options) if order == "patch first" else patch(lora(model, **options))
    assert_same(want, run(adapted, batch))
    merged = adapted.merge_and_unload().requires_grad_()
    assert_same(run(unpatch(copy.deepcopy(merged)), batch), run(merged, batch))


def test_lora_around_the_model_then_resize_then_unpatch() -> None:
    model, batch = model_and_batch("llama")
    adapted = lora(patch(model))
    adapted.resize_token_embeddings(VOCAB + 1, mean_resizing=False)
    got = run(adapted, batch)
    assert_same(run(unpatch(adapted), batch), got)
    assert not model._forward_hooks


ADAPTED_HEADS = {"lora": {"target_modules": ["lm_head"]}, "tokens": {"trainable_token_indices": {"lm_head": [1, 2]}}}


@pytest.mark.parametrize("options", ADAPTED_HEADS.values(), ids=ADAPTED_HEADS)
def test_adapters_on_the_head(options: dict[str, Any]) -> None:
    """Refused by name; put on after the patch, the loss is right and the warning names the reason."""
    model, batch = model_and_batch("llama")
    want = run(lora(copy.deepcopy(model), **options), batch)
    with pytest.raises(ValueError, match=r"cannot patch LlamaForCausalLM: .* carries a PEFT adapter"):
        patch(lora(copy.deepcopy(model), **options))
    adapted = lora(patch(model), **options)
    (message,) = warned(adapted, batch)
    assert "carries a PEFT adapter" in message
    assert_equal(want, run(adapted, batch))
