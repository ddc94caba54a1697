import copy
import math
from typing import Any

import pytest
import torch
import transformers
from embedding.small import llama
from hf.tiny_models import MODELS, batch_for, model_and_batch
from torch import nn

import fastft
from fastft.embedding import SparseEmbedding, TrainableRows
from fastft.hf.pretrained import load_model, load_outline
from fastft.trainer.regularize import Neftune, dropout_settings

from .adapted import IGNORED, LORA, config_for, fresh

pytestmark = [pytest.mark.filterwarnings(words) for words in IGNORED]
RATE = 0.25


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (transformers.LlamaConfig(), {"attention_dropout"}),
        (
            transformers.BertConfig(classifier_dropout=None),
            {"hidden_dropout_prob", "attention_probs_dropout_prob"},
        ),
        (transformers.T5Config(), {"dropout_rate", "classifier_dropout"}),
        (
            transformers.GPT2Config(),
            {"resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"},
        ),
        (
            transformers.BartConfig(encoder_layerdrop=0.1),
            {"dropout", "attention_dropout", "activation_dropout", "classifier_dropout"},
        ),
        (
            transformers.ModernBertConfig(),
            {"attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"},
        ),
    ],
)
def test_the_rates_of_a_configuration(config: Any, names: set[str]) -> None:
    assert dropout_settings(config, RATE) == dict.fromkeys(names, RATE)


def test_rates_of_parts_and_of_models_without_any() -> None:
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(), transformers.GPT2Config()
    )
    found = dropout_settings(both, RATE)
    assert found.keys() == {"encoder", "decoder"}
    assert found["encoder"] == {"hidden_dropout_prob": RATE, "attention_probs_dropout_prob": RATE}
    assert found["decoder"]["attn_pdrop"] == RATE
    with pytest.raises(ValueError, match=r"a mamba has no dropout: leave it out.*lora_dropout"):
        dropout_settings(transformers.MambaConfig(), RATE)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart", "encoder_decoder", "distilbert", "opt"])
def test_every_dropout_of_the_loaded_model_has_the_rate(name: str, tmp_path: Any) -> None:
    model, _ = model_and_batch(name)
    model.save_pretrained(tmp_path)
    kind = {"bert": "AutoModelForMaskedLM", "distilbert": "AutoModelForMaskedLM"}.get(name, "AutoModelForSeq2SeqLM")
    kind = "AutoModelForCausalLM" if name in ("gpt2", "opt") else kind
    overrides = dropout_settings(model.config, RATE)
    loaded: Any = load_model(str(tmp_path), torch.float32, kind, overrides=overrides)
    rates = {module.p for module in loaded.modules() if isinstance(module, nn.Dropout)}
    assert rates <= {RATE}
    plain: Any = load_model(str(tmp_path), torch.float32, kind)
    for one, other in zip(loaded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    batch = batch_for(name)
    torch.manual_seed(0)
    first, second = (loaded.train()(**batch).logits for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(loaded.eval()(**batch).logits, plain.eval()(**batch).logits)


@pytest.fixture
def embedding_only() -> Any:
    """A Llama and what its layers get of the embedding."""
    model = llama(tied=False)
    seen: list[torch.Tensor] = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    return model, seen


def noise_of(model: Any, seen: list[torch.Tensor], **inputs: torch.Tensor) -> torch.Tensor:
    model(**inputs)
    return (seen[-1] - model.get_input_embeddings().weight[inputs["input_ids"]]).detach()


def test_noise_is_uniform_and_bounded_by_the_tokens_of_the_row(embedding_only: Any) -> None:
    model, seen = embedding_only
    Neftune(model, 5.0)
    ids = torch.randint(4, 13, (2, 24))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    drawn = torch.stack([noise_of(model, seen, input_ids=ids, attention_mask=mask) for _ in range(40)])
    for row, tokens in ((0, 24), (1, 6)):
        bound = 5.0 / math.sqrt(tokens * 16)
        assert 0.99 * bound < drawn[:, row].abs().max() <= bound + 1e-6
        assert abs(drawn[:, row].mean()) < 0.02 * bound
        assert drawn[:, row].std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    width = noise_of(model, seen, input_ids=ids).abs().max()
    assert 0.97 * 5.0 / math.sqrt(24 * 16) < width <= 5.0 / math.sqrt(24 * 16) + 1e-6


def test_noise_in_training_alone_by_seed_until_removed(embedding_only: Any) -> None:
    model, seen = embedding_only
    inputs = {"input_ids": torch.randint(4, 13, (2, 8))}
    hooks = len(model.model.embed_tokens._forward_hooks)
    noise = Neftune(model, 5.0)
    torch.manual_seed(3)
    first = noise_of(model, seen, **inputs)
    torch.manual_seed(3)
    assert torch.equal(first, noise_of(model, seen, **inputs))
    assert not torch.equal(first, noise_of(model, seen, **inputs))
    model.eval()
    assert not noise_of(model, seen, **inputs).any()
    model.train()
    noise.remove()
    assert not noise_of(model, seen, **inputs).any()
    assert len(model.model.embed_tokens._forward_hooks) == hooks
    assert not any(module._forward_pre_hooks for module in (model, model.model))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_an_alpha_that_cannot_be_meant(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is"):
        Neftune(llama(tied=True), alpha)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_has_noise_and_gradients(name: str) -> None:
    model, batch = model_and_batch(name)
    want = model(**batch).loss.item()
    noise = Neftune(model, 20.0)
    torch.manual_seed(0)
    loss = model(**batch).loss
    assert abs(loss.item() - want) > 1e-6
    loss.backward()
    assert model.get_input_embeddings().weight.grad.isfinite().all()
    noise.remove()
    assert model(**batch).loss.item() == want


def test_each_stack_counts_its_own_mask() -> None:
    """The encoder's mask has the shape of the decoder's ids, which have none."""
    model, batch = model_and_batch("t5")
    batch["attention_mask"][:, 3:] = 0
    seen: dict[str, torch.Tensor] = {}
    for name in ("encoder", "decoder"):
        lookup = getattr(model, name).embed_tokens
        lookup.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out.detach()}))
    Neftune(model, 4.0)
    for name in ("encoder", "decoder"):
        lookup = getattr(model, name).embed_tokens
        lookup.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out - seen[name]}))
    model(**batch)
    for name, tokens in (("encoder", 3), ("decoder", 9)):
        bound = 4.0 / math.sqrt(tokens * 16)
        assert 0.9 * bound < seen[name].abs().max() <= bound + 1e-6


@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_with_trainable_rows(tied: bool, rows_first: bool) -> None:
    """The gradient of the rows is that of a table with the same noise."""
    dense, sparse = llama(tied=tied), llama(tied=tied)
    Neftune(dense, 5.0)
    if rows_first:
        rows = TrainableRows(sparse, [12, 5])
    Neftune(sparse, 5.0)
    if not rows_first:
        rows = TrainableRows(sparse, [12, 5])
    batch = {"input_ids": torch.randint(4, 13, (3, 8)), "labels": torch.randint(4, 13, (3, 8))}
    for model in (dense, fastft.patch(sparse)):
        torch.manual_seed(0)
        model(**batch).loss.backward()
    found = next(iter(rows.parameters())).grad
    assert found is not None
    torch.testing.assert_close(found, dense.get_input_embeddings().weight.grad[[12, 5]])


def test_with_a_sparse_embedding() -> None:
    dense, sparse = llama(tied=False), llama(tied=False)
    sparse.set_input_embeddings(SparseEmbedding.from_embedding(sparse.get_input_embeddings()))
    batch = {"input_ids": torch.randint(4, 13, (3, 8)), "labels": torch.randint(4, 13, (3, 8))}
    for model in (dense, sparse):
        Neftune(model, 5.0)
        torch.manual_seed(0)
        model(**batch).loss.backward()
    found = sparse.get_input_embeddings().weight.grad
    assert found.is_sparse
    torch.testing.assert_close(found.to_dense(), dense.get_input_embeddings().weight.grad)


def test_through_peft_and_in_copies(model_dir: str, tmp_path: Any) -> None:
    """PEFT calls the model without its own hooks; the mask is seen all the same."""
    model, _, _ = fresh(config_for("llama", model_dir, tmp_path, lora=LORA))
    lookup, seen = model.get_base_model().get_input_embeddings(), []
    Neftune(model, 5.0)
    lookup.register_forward_hook(lambda module, args, out: seen.append((out - lookup.weight[args[0]]).detach()))
    ids = torch.randint(4, 200, (1, 20))
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    model.train()(input_ids=ids, attention_mask=mask)
    bound = 5.0 / math.sqrt(5 * 32)
    assert 0.9 * bound < seen[0].abs().max() <= bound + 1e-6
    copied = copy.deepcopy(model)
    torch.manual_seed(0)
    one = model(input_ids=ids, attention_mask=mask).logits
    torch.manual_seed(0)
    assert torch.equal(copied(input_ids=ids, attention_mask=mask).logits, one)


def test_a_setting_that_the_configuration_does_not_have(model_dir: str) -> None:
    for load in (
        lambda **given: load_model(model_dir, torch.float32, **given),
        lambda **g: load_outline(model_dir, **g),
    ):
        with pytest.raises(ValueError, match=r"cannot be loaded: the configuration of a llama has no 'resid_pdrop'"):
            load(overrides={"resid_pdrop": 0.1})
        load(overrides={"attention_dropout": 0.1})
