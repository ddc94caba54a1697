"""Training of rows: nothing but the rows changes, in tied and untied models, patched or not, with LoRA, in bf16."""

import copy
import importlib.util
from typing import Any

import peft
import pytest
import torch
import transformers
from hf.tiny_models import VOCAB, is_fused, run
from torch import Tensor

import fastft
from embedding.small import LORA, WORDS, batch, llama, tokenizer_of_words
from fastft.embedding import TrainableRows, add_tokens, chosen
from fastft.hf import builtin, pretrained

pytestmark = [  # of PEFT with transformers 5.23
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
]


def weights(rows: TrainableRows) -> list[Tensor]:
    return [table.table.weight for table in rows.chosen]


def untouched(model: Any, rows: TrainableRows) -> dict[str, Tensor]:
    """Every parameter but the rows, chosen rows of tables left out."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kept = [i for i in range(len(weights(rows)[0])) if i not in rows.token_ids]
    for table in rows.chosen:
        for path in table.table.modules:
            name = next(n for n in state if n.endswith(f"{path}.weight"))
            state[name] = state[name][kept]
    return state


@pytest.mark.parametrize(
    ("tied", "patched", "fused"),
    [
        (True, "plain", False),
        (False, "plain", True),
        (True, "patched after", True),
        (False, "patched before", False),
    ],
)
def test_two_hundred_steps_change_nothing_else(tied: bool, patched: str, fused: bool) -> None:
    model, tokenizer = llama(tied=tied, rows=24), tokenizer_of_words()
    ids = add_tokens(model, tokenizer, {"<a>": "mean", "<b>": "copy:-"})
    if patched == "patched before":
        fastft.patch(model)
    model.requires_grad_(False)
    rows = TrainableRows(model, ids)
    if patched == "patched after":
        fastft.patch(model)
    before, start = untouched(model, rows), [w[ids].clone() for w in weights(rows)]
    optimizer = torch.optim.AdamW(rows.parameters(), lr=2e-2, weight_decay=0.1, fused=fused)
    inputs = batch(vocabulary=15)
    inputs["labels"][:] = -100  # the tokens after "yes" and after <a>
    inputs["input_ids"][:, 2:6] = torch.tensor([5, ids[0], ids[1], 6])
    inputs["labels"][:, 3:6] = inputs["input_ids"][:, 3:6]
    losses = []
    for _ in range(200):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    after = untouched(model, rows)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    for table, first in zip(rows.chosen, start, strict=True):
        assert torch.equal(table.table.weight[ids], table.rows)
        assert (table.rows != first).all()
    moments = [s[key] for s in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert sum(m.nbytes for m in moments) == len(weights(rows)) * len(ids) * 16 * 2 * 4
    if not tied:  # learnt to emit it
        assert (model(input_ids=inputs["input_ids"]).logits[:, 2].argmax(-1) == ids[0]).all()


def test_an_untied_head_alone_can_emit_a_token_that_is_never_read() -> None:
    model = llama(tied=False)
    model.requires_grad_(False)
    rows = TrainableRows(model, [11])
    inputs = torch.tensor([[1, 5, 6, 7]])
    labels = torch.tensor([[-100, -100, -100, 11]])
    optimizer = torch.optim.SGD(rows.parameters(), lr=0.5)
    start = rows.input.clone()
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=inputs, labels=labels).loss.backward()
        optimizer.step()
    assert torch.equal(rows.input, start)
    assert model(input_ids=inputs).logits[0, 2].argmax() == 11


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_bf16_model_has_fp32_masters(tied: bool) -> None:
    """Steps far below a unit of bf16 add up."""
    model = llama(tied=tied, dtype=torch.bfloat16)
    rows = TrainableRows(fastft.patch(model), [5, 12])
    before, start = untouched(model, rows), rows.input.clone()
    assert {p.dtype for p in rows.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(rows.parameters(), lr=1e-5, weight_decay=0.1)
    inputs = batch()
    for _ in range(50):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    moved = (rows.input - start).abs()
    assert moved.median() > 2e-4
    assert moved.max() < 6e-4
    for table in rows.chosen:
        assert torch.equal(table.table.weight[[5, 12]], table.rows.bfloat16())
    assert all(torch.equal(value, before[name]) for name, value in untouched(model, rows).items())


@pytest.mark.parametrize("order", ["lora first", "rows first, then thawed"])
def test_with_lora_around_the_model(order: str) -> None:
    model = llama(tied=True)
    if order == "lora first":
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
        rows = TrainableRows(model, [5, 12])
    else:
        rows = TrainableRows(model, [5, 12])
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
        with pytest.warns(UserWarning, match="the trainable rows are frozen"):
            model(**batch())
        rows.requires_grad_(True)
    fastft.patch(model)
    before = untouched(model, rows)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert any(p is rows.input for p in trained)
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = model(**batch())
        assert is_fused(output)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, value in untouched(model, rows).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_gradient_checkpointing() -> None:
    model = llama(tied=False)
    model.requires_grad_(False)
    rows = TrainableRows(model, [5, 12])
    plain = run(model, batch())[1]
    for reentrant in (False, True):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
        found = run(model, batch())[1]
        assert found.keys() == plain.keys()
        assert len(plain) == 2
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert rows.input.grad is not None


def test_generate() -> None:
    model = llama(tied=True).eval()
    rows = TrainableRows(fastft.patch(model), [5, 12])
    with torch.no_grad():
        rows.input.normal_()
    plain = llama(tied=True).eval()
    plain.load_state_dict(model.state_dict())
    prompt = torch.tensor([[1, 5, 12, 6]])
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    assert torch.equal(model.generate(prompt, **options), plain.generate(prompt, **options))


def test_state_of_the_rows_alone() -> None:
    model = llama(tied=False, dtype=torch.bfloat16)
    rows = TrainableRows(model, [5, 12])
    rows.output.data += 1e-6
    state = copy.deepcopy(rows.state_dict())
    rows.remove()
    again = TrainableRows(model, [5, 12])
    again.load_state_dict(state)
    assert torch.equal(again.output, rows.output)
    again.remove()
    with pytest.raises(ValueError, match=r"rows of tokens \[5, 12\]; TrainableRows was made for \[5, 11\]"):
        TrainableRows(model, [5, 11]).load_state_dict(state)


def test_merge_keeps_the_rows_and_remove_puts_them_back() -> None:
    for undo in ("merge", "remove"):
        model = llama(tied=False, dtype=torch.bfloat16)
        model.lm_head.weight.requires_grad_(False)
        before = copy.deepcopy(model)
        rows = TrainableRows(model, [5, 12])
        rows.input.data += 1
        getattr(rows, undo)()
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in before.named_parameters()]
        assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
        table, old = model.model.embed_tokens.weight, before.model.embed_tokens.weight
        added = torch.zeros(len(WORDS), 1, dtype=torch.bfloat16)
        added[[5, 12]] = undo == "merge"
        assert torch.equal(table, old + added)
        hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._state_dict_hooks]
        assert not hooks
        rows.input.data += 1
        torch.optim.SGD(rows.parameters(), lr=1.0).step()
        model.state_dict()
        assert torch.equal(table, old + added)
        assert not [c for c in chosen.LIVE if c in rows.chosen]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"token_ids is \[\]; expected at least one token id"),
        ([1.5], r"token_ids is \[1.5\]; expected"),
        ([5, 7, 5], "token_ids has 5 twice"),
        ([5, 13], r"token id 13 has no row: the table has 13; add_tokens\(model, tokenizer, ...\) makes rows"),
        (torch.tensor([-1]), "token id -1 has no row"),
    ],
)
def test_wrong_ids(ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainableRows(llama(tied=True), ids)


def test_a_table_resized_later_is_noticed() -> None:
    for tied in (True, False):
        model = llama(tied=tied)
        TrainableRows(model, [5])
        model.resize_token_embeddings(20, mean_resizing=False)
        with pytest.raises(RuntimeError, match="was resized, replaced or sharded after TrainableRows"):
            model(**batch())


def test_a_head_that_is_not_called_is_warned_about() -> None:
    """MobileBERT multiplies by its decoder's weight, concatenated with another."""
    config = transformers.MobileBertConfig(
        vocab_size=VOCAB, hidden_size=16, embedding_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, true_hidden_size=8, intra_bottleneck_size=8,
    )  # fmt: skip
    model = transformers.MobileBertForMaskedLM(config)
    TrainableRows(model, [5])
    ids = torch.tensor([[5, 6]])
    with pytest.warns(UserWarning, match="MobileBertForMaskedLM did not call its output embedding"):
        model(input_ids=ids, labels=ids)


@pytest.fixture
def smollm2() -> Any:
    for module, package in builtin.SMOLLM2_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{package} is not installed")
    return pretrained.load("builtin:smollm2", torch.bfloat16)


@pytest.mark.parametrize("steps", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_two_new_tokens_of_smollm2(smollm2: Any, steps: int) -> None:
    """135 M parameters in bf16, tied, 49,152 rows without room: the new tokens' loss falls, nothing else moves."""
    model, tokenizer = smollm2
    model.requires_grad_(False)
    ids = add_tokens(model, tokenizer, {"<colour>": "text:colour", "</colour>": "mix:0.5*text:end+0.5*mean"})
    rows = TrainableRows(fastft.patch(model), ids)
    before = untouched(model, rows)
    optimizer = torch.optim.AdamW(rows.parameters(), lr=5e-2, weight_decay=0.1)
    texts = ["The sky is <colour>blue</colour>.", "Snow is <colour>white</colour>.", "Coal is <colour>black</colour>."]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    new = torch.isin(inputs["input_ids"], torch.tensor(ids))
    labels = torch.where(new, inputs["input_ids"], -100)
    losses = []
    for _ in range(steps):
        output = model(**inputs, labels=labels)
        assert is_fused(output)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    after = untouched(model, rows)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim()) == 2 * 576 * 2 * 4
