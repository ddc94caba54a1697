"""`trainer_loss` and `PatchCallback` inside transformers' Trainer: exact accumulation, and no logits unless read."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from processes import run_on
from tiny_models import BERT, LLAMA, MODELS, SEQ2SEQ, VOCAB, batch_for, model_and_batch
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from fastft.hf import LazyLogits, PatchCallback, patch, trainer_loss, unpatch
from fastft.hf.compute_loss import shifts_labels
from fastft.hf.patch import HOOKS, warn_once

pytestmark = pytest.mark.filterwarnings(
    "ignore:Version v4.12.0:FutureWarning",
    "ignore:.*pin_memory:UserWarning",
    "error:.*not fused",
)
CAUSAL = {"gpt", "gpt2", "bloom", "llama", "qwen3", "gemma2", "gemma3", "cohere", "granite", "opt"}
ASKED = [name for name in MODELS if name != "bert_pretraining"]


@pytest.fixture
def never_materialized(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, computing lazy logits fails."""

    def fail(*args: Any) -> None:
        raise AssertionError("the logits were materialized")

    return lambda: monkeypatch.setattr(LazyLogits, "_replay", fail)


def with_decoder_inputs(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What Trainer hands to the model: no labels."""
    given = {k: v for k, v in batch.items() if k != "labels"}
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        given["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    if isinstance(model, hf.EncoderDecoderModel):  # which masks these itself, but only where it is given labels
        given["decoder_attention_mask"] = given["decoder_input_ids"] != model.config.pad_token_id
    return given


@pytest.mark.parametrize("name", ASKED)
def test_it_is_the_models_own_sum(name: str, never_materialized: Callable[[], None]) -> None:
    model, batch = model_and_batch(name)
    own = model(**batch).loss
    shift = name in CAUSAL
    assert shifts_labels(model) is shift
    count = int((batch["labels"][:, 1:] if shift else batch["labels"]).ne(-100).sum())
    loss = trainer_loss(model)
    assert model.training
    never_materialized()
    outputs = model(**with_decoder_inputs(model, batch))
    for num_items, want in ((torch.tensor([2 * count]), own / 2), (2.0 * count, own / 2), (None, own)):
        torch.testing.assert_close(loss(outputs, batch["labels"], num_items), want, rtol=1e-5, atol=0)
    nothing = loss(outputs, torch.full_like(batch["labels"], -100), None)
    nothing.backward()
    assert nothing.item() == 0


def rows_of(name: str, model: Any) -> list[dict[str, Tensor]]:
    """Eight samples with 1 to 6 labels each."""
    torch.manual_seed(3)
    batch = batch_for(name, 8)
    batch["labels"] = torch.where(torch.arange(9) > torch.arange(8)[:, None] % 6 + 2, -100, batch["input_ids"])
    if name in SEQ2SEQ:
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    return [{k: v[i] for k, v in batch.items()} for i in range(8)]


def trained(folder: Path, name: str, size: int, make_loss: Any, **options: Any) -> tuple[list[float], Tensor]:
    """Losses and head after three windows of four samples, in micro-batches of `size`."""
    model, _ = model_and_batch(name)
    arguments = hf.Seq2SeqTrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size,
        logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-2,
        optim="sgd", logging_nan_inf_filter=False, **options,
    )  # fmt: skip
    trainer = hf.Seq2SeqTrainer(
        model, arguments, train_dataset=rows_of(name, model), compute_loss_func=make_loss and make_loss(model)
    )
    trainer.remove_callback(hf.PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, model.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "t5", "bart", "llama"])
def test_any_split_of_a_window_is_the_same_training(name: str, tmp_path: Path) -> None:
    whole, head = trained(tmp_path, name, 4, trainer_loss)
    own, own_head = trained(tmp_path, name, 4, None)
    assert whole == pytest.approx(own, rel=1e-5)
    torch.testing.assert_close(head, own_head, rtol=1e-5, atol=1e-6)
    for size in (1, 2):
        split, split_head = trained(tmp_path, name, size, trainer_loss)
        assert split == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(split_head, head, rtol=1e-5, atol=1e-6)


def test_bfloat16_of_the_trainer_stays_fused(tmp_path: Path, never_materialized: Callable[[], None]) -> None:
    def make(model: Any) -> Any:
        loss = trainer_loss(model)
        never_materialized()
        return loss

    want, _ = trained(tmp_path, "bert", 2, trainer_loss)
    got, _ = trained(tmp_path, "bert", 2, make, bf16=True)
    assert got == pytest.approx(want, rel=2e-2)


def test_options_of_the_loss() -> None:
    model, batch = model_and_batch("bert")
    given = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**given).logits.flatten(0, 1)
    weight = torch.rand(VOCAB)
    loss = trainer_loss(model, label_smoothing=0.2, weight=weight)
    want = F.cross_entropy(logits, batch["labels"].flatten(), weight, label_smoothing=0.2, reduction="sum") / 7
    torch.testing.assert_close(loss(model(**given), batch["labels"], 7), want, rtol=1e-5, atol=0)


def test_outputs_may_be_a_tuple_and_logits_may_have_been_read() -> None:
    model, batch = model_and_batch("llama")
    want = model(**batch).loss
    loss = trainer_loss(model)
    given = {k: v for k, v in batch.items() if k != "labels"}
    torch.testing.assert_close(loss(model(**given, return_dict=False), batch["labels"]), want)
    warn_once.cache_clear()
    outputs = model(**given)
    outputs.logits.sum()
    with pytest.warns(UserWarning, match="the loss of LlamaForCausalLM is not fused: something read"):
        torch.testing.assert_close(loss(outputs, batch["labels"]), want)
    warn_once.cache_clear()


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_an_encoder_decoder_without_decoder_inputs_is_refused(name: str) -> None:
    """BART would make them of the input's own ids, and train on that."""
    model, batch = model_and_batch(name)
    loss = trainer_loss(model)
    refusal = r"got no decoder_input_ids.*DataCollatorForSeq2Seq\(tokenizer, model=model\)"
    for train, message in ((True, refusal), (False, refusal + "|You (must|cannot|have to) specify")):  # the model's own
        model.train(train)
        with pytest.raises(ValueError, match=message):
            loss(model(**{k: v for k, v in batch.items() if k != "labels"}), batch["labels"])
        given = with_decoder_inputs(model, batch)
        assert loss(model(**given), batch["labels"]) > 0
    unpatch(model.train())
    assert not model._forward_pre_hooks


def test_bart_is_refused_in_words_of_its_own() -> None:
    model, batch = model_and_batch("bart")
    trainer_loss(model)
    with pytest.raises(ValueError, match=r"BartForConditionalGeneration got no decoder_input_ids.*model=model"):
        model(input_ids=batch["input_ids"])


def mixture() -> Any:
    config = LLAMA | {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**config, router_aux_loss_coef=1.0))


def on_meta() -> Any:
    with torch.device("meta"):
        return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (mixture, ValueError, r"the loss of MixtralForCausalLM is .* made of more \(router losses"),
        (lambda: model_and_batch("bert_pretraining")[0], ValueError, "BertForPreTraining is None"),
        (lambda: hf.BertModel(hf.BertConfig(**BERT)), ValueError, "BertModel: it has no output embedding"),
        (on_meta, ValueError, r"LlamaForCausalLM cannot be asked .* shift_labels=True"),
        (lambda: "bert", TypeError, "model is a str"),
    ],
)
def test_models_that_it_refuses(model: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trainer_loss(model())


def test_a_model_that_cannot_be_asked_may_be_told() -> None:
    model, batch = model_and_batch("llama")
    want = model(**batch).loss
    model.config.is_encoder_decoder = False
    loss = trainer_loss(model, shift_labels=True)
    given = {k: v for k, v in batch.items() if k != "labels"}
    torch.testing.assert_close(loss(model(**given), batch["labels"]), want)
    assert loss(model(**given), batch["labels"]) != trainer_loss(model, shift_labels=False)(
        model(**given), batch["labels"]
    )


@pytest.mark.parametrize(
    ("labels", "num_items", "message"),
    [
        (None, 3, "the batch has no 'labels'"),
        (torch.zeros(3, 8, dtype=torch.int64), 3, r"logits are \(3, 9, 67\) and labels \(3, 8\)"),
        (torch.zeros(3, 9, dtype=torch.int64), torch.tensor([[3], [3]]), "num_items_in_batch has 2 values.*torchrun"),
    ],
)
def test_batches_that_it_refuses(labels: Tensor | None, num_items: Any, message: str) -> None:
    model, batch = model_and_batch("bert")
    loss = trainer_loss(model)
    outputs = model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match=message):
        loss(outputs, labels, num_items)


def sharded(rank: int, n: int) -> None:
    model, batch = model_and_batch("bert")
    want = model(**batch).loss.detach()
    for before in (True, False):
        model, _ = model_and_batch("bert")
        if before:
            loss = trainer_loss(model)
        fully_shard([model.bert.embeddings, model.cls])
        fully_shard(model)
        if not before:
            loss = trainer_loss(model)
        given = {k: v for k, v in batch.items() if k != "labels"}
        for _ in range(2):
            got = loss(model(**given), batch["labels"])
            got.backward()
            torch.testing.assert_close(got.detach(), want, rtol=1e-5, atol=0)


def test_sharded_before_or_after() -> None:
    run_on(2, sharded)


# The callback


class Seen(hf.TrainerCallback):
    """Whether the model is patched at each step, and an exception at a step to order."""

    def __init__(self, fails_at: int = -1) -> None:
        self.patched: list[bool] = []
        self.fails_at = fails_at

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.patched.append(HOOKS in vars(model))
        if state.global_step == self.fails_at:
            raise KeyError("a step that fails")


def trainer_of(folder: Path, model: Any, *callbacks: Any) -> Any:
    arguments = hf.TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=2, report_to=[], save_strategy="no", disable_tqdm=True,
        use_cpu=True, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    data = rows_of("llama", model)
    trainer = hf.Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))
    trainer.remove_callback(hf.PrinterCallback)
    return trainer


def test_the_callback_patches_for_the_time_of_training(tmp_path: Path, never_materialized: Callable[[], None]) -> None:
    """Training and evaluation within it make no logits."""
    model, seen = model_and_batch("llama")[0], Seen()
    plain = trainer_of(tmp_path, model_and_batch("llama")[0])
    plain.train()
    never_materialized()
    trainer = trainer_of(tmp_path, model, PatchCallback(), seen)
    trainer.train()
    assert seen.patched == [True, True]
    assert HOOKS not in vars(model)
    assert type(model.lm_head) is torch.nn.Linear
    want, got = (
        [entry["eval_loss"] for entry in each.state.log_history if "eval_loss" in entry] for each in (plain, trainer)
    )
    assert len(got) == 2
    assert got == pytest.approx(want, rel=1e-5)


def test_the_callback_leaves_a_patched_model_patched(tmp_path: Path) -> None:
    model = patch(model_and_batch("llama")[0])
    trainer_of(tmp_path, model, PatchCallback()).train()
    assert HOOKS in vars(model)


def test_the_callback_after_an_exception(tmp_path: Path) -> None:
    """Trainer tells nobody, but the callback's context ends all the same."""
    model = model_and_batch("llama")[0]
    with pytest.raises(KeyError, match="a step that fails"), PatchCallback() as callback:
        trainer_of(tmp_path, model, callback, Seen(fails_at=1)).train()
    assert HOOKS not in vars(model)
    callback = PatchCallback()
    with pytest.raises(KeyError):
        trainer_of(tmp_path, model, callback, Seen(fails_at=1)).train()
    assert HOOKS in vars(model)
    trainer_of(tmp_path, model, callback).train()  # the next training ends it
    assert HOOKS not in vars(model)


def test_the_callback_names_what_cannot_be_patched(tmp_path: Path) -> None:
    model = hf.BertForSequenceClassification(hf.BertConfig(**BERT))
    with pytest.raises(ValueError, match="BertForSequenceClassification: it has no output embedding"):
        PatchCallback().on_train_begin(None, SimpleNamespace(), None, model=model)
