"""Rows learn as in a table that is trained whole, at the cost of R rows, and the table follows them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf.tiny_models import MODELS, is_fused, model_and_batch, run
from torch import Tensor

import fastft
from embedding.small import batch, llama
from fastft.embedding import TrainableRows

IDS = [9, 40, 7, 8]


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "bert_pretraining"])
@pytest.mark.filterwarnings("ignore:.*Version v4.12.0 introduces:FutureWarning")
def test_gradients_are_those_rows_of_a_whole_table(name: str, patched: bool) -> None:
    model, inputs = model_and_batch(name)
    whole = copy.deepcopy(model)
    want, dense = run(whole, inputs)
    rows = TrainableRows(model, IDS)
    if patched:
        fastft.patch(model)
    got, grads = run(model, inputs)
    assert is_fused(got) == patched
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=0)
    for table in rows.chosen:
        found = table.rows.grad
        assert found is not None
        assert found.shape == (len(IDS), table.table.weight.shape[1])
        expected = whole.get_submodule(next(iter(table.table.modules))).weight.grad[IDS]
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
        assert table.table.weight.grad is None
    largest = max(float(grad.abs().max()) for grad in dense.values())
    assert {n for n in grads if "trainable_rows" not in n} == {n for n in dense if n in grads}
    for parameter in dense.keys() & grads.keys():
        torch.testing.assert_close(grads[parameter], dense[parameter], rtol=1e-5, atol=1e-6 * largest)


def test_accumulation_and_two_forwards_before_one_backward() -> None:
    """Writing the rows into the table at each forward does not count as a change of it."""
    model = llama(tied=True)
    rows = TrainableRows(model, [5, 12])
    one, two = (model(**batch(seed=seed)).loss for seed in (1, 2))
    (one + two).backward()
    together = rows.input.grad.clone()
    rows.zero_grad()
    for seed in (1, 2):
        model(**batch(seed=seed)).loss.backward()
    torch.testing.assert_close(together, rows.input.grad)


def test_a_step_between_forward_and_backward_is_an_error() -> None:
    model = llama(tied=True)
    rows = TrainableRows(model, [5, 12])
    loss = model(**batch()).loss
    rows.input.grad = torch.ones_like(rows.input)
    torch.optim.SGD(rows.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("how", ["in place", "data", "load_state_dict"])
def test_whatever_changes_the_rows_shows(how: str) -> None:
    model = llama(tied=False).eval()
    rows = TrainableRows(model, [5, 12])
    inputs, values = batch()["input_ids"], torch.randn(2, 16)
    with torch.no_grad():
        if how == "in place":
            rows.input.copy_(values)
        elif how == "data":
            rows.input.data.copy_(values)
        else:
            rows.load_state_dict({**rows.state_dict(), "input": values})
        plain = llama(tied=False).eval()
        plain.model.embed_tokens.weight[[5, 12]] = values
        assert torch.equal(model(input_ids=inputs).logits, plain(input_ids=inputs).logits)


def test_a_copy_of_the_model_is_its_own() -> None:
    model = llama(tied=True)
    rows = TrainableRows(model, [5, 12])
    twin = copy.deepcopy(model)
    loss = twin(**batch()).loss
    loss.backward()
    assert rows.input.grad is None
    row = twin.model.embed_tokens.trainable_rows
    assert row.grad.abs().sum() > 0
    torch.optim.SGD([row], lr=1.0, fused=True).step()
    assert torch.equal(twin.model.embed_tokens.weight[[5, 12]], row)
    assert not torch.equal(model.model.embed_tokens.weight[[5, 12]], row)


def test_autocast() -> None:
    whole, model = llama(tied=False), llama(tied=False)
    rows = TrainableRows(model, [5, 12])
    with torch.autocast("cpu", torch.bfloat16):
        want, got = whole(**batch()).loss, model(**batch()).loss
    want.backward()
    got.backward()
    assert torch.equal(got, want)
    torch.testing.assert_close(rows.input.grad, whole.model.embed_tokens.weight.grad[[5, 12]])
    torch.testing.assert_close(rows.output.grad, whole.lm_head.weight.grad[[5, 12]], rtol=1e-2, atol=1e-3)


def test_compiled() -> None:
    model = llama(tied=True)
    rows = TrainableRows(model, [5, 12])
    run(model, batch())
    want = rows.input.grad.clone()
    compiled = torch.compile(model, backend="aot_eager")
    rows.zero_grad()
    compiled(**batch()).loss.backward()
    torch.testing.assert_close(rows.input.grad, want)


def test_nothing_of_the_size_of_the_table_in_backward() -> None:
    """Lookup and head of a table of 50,000 rows make a gradient of two."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(result):
                if isinstance(x, Tensor) and "view" not in str(func) and func is not torch.ops.aten.t.default:
                    self.numel = max(self.numel, x.numel())
            return result

    model = llama(tied=True, rows=50_000)
    model.requires_grad_(False)
    rows = TrainableRows(fastft.patch(model), [5, 12])
    loss = model(**batch()).loss
    with Largest() as largest:
        loss.backward()
    assert rows.input.grad is not None
    assert 0 < largest.numel < 50_000


def test_a_padding_token_learns_from_the_head_alone() -> None:
    whole, model = llama(tied=False), llama(tied=False)
    rows = TrainableRows(model, [3, 5])
    inputs = batch()
    inputs["input_ids"][:, 0] = 3
    run(whole, inputs)
    run(model, inputs)
    assert (rows.input.grad[0] == 0).all()
    torch.testing.assert_close(rows.input.grad, whole.model.embed_tokens.weight.grad[[3, 5]])
    torch.testing.assert_close(rows.output.grad, whole.lm_head.weight.grad[[3, 5]])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_save_pretrained_and_state_dict_are_those_of_a_plain_model(tied: bool, tmp_path: Path) -> None:
    model = llama(tied=tied).eval()
    names = list(model.state_dict())
    rows = TrainableRows(model, [5, 12])
    for parameter in rows.parameters():
        parameter.data.normal_()  # unseen until it is saved
    model.save_pretrained(tmp_path)
    assert list(model.state_dict()) == names
    loaded, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for table in rows.chosen:
        assert torch.equal(loaded.get_submodule(next(iter(table.table.modules))).weight[[5, 12]], table.rows)
    other = llama(tied=tied, seed=1).eval()
    again = TrainableRows(other, [12, 5])
    other.load_state_dict(model.state_dict())
    assert torch.equal(again.input, rows.input.flip(0))
    assert torch.equal(other(**batch()).logits, model(**batch()).logits)
    other.load_state_dict(llama(tied=tied).state_dict(), assign=True)
    assert torch.equal(other(**batch()).logits, llama(tied=tied).eval()(**batch()).logits)
