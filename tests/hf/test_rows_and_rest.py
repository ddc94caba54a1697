"""SparseEmbedding and SparseAdamW inside transformers' Trainer: AdamW's training, clipped, scheduled and resumed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import batch_for, model_and_batch
from torch import Tensor, nn

from fastft.embedding import SparseEmbedding
from fastft.hf import RowsAndRest, clip_rows, patch
from fastft.optim import SparseAdamW

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
ADAM: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}


def make(folder: Path, rows: bool, **options: Any) -> Any:
    """Windows of two micro-batches, eight steps, learning rates that fall."""
    model, _ = model_and_batch("llama")
    torch.manual_seed(1)
    data = [{k: v[i] for k, v in batch_for("llama", 9).items()} for i in range(1, 9)]
    if rows:
        table = SparseEmbedding.from_embedding(model.get_input_embeddings())
        patch(model).set_input_embeddings(table)
        rest = [p for p in model.parameters() if p is not table.weight]
        optimizer: Any = RowsAndRest(SparseAdamW([table.weight], **ADAM), torch.optim.AdamW(rest, **ADAM))
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **ADAM)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    settings: dict[str, Any] = {"max_steps": 8, "save_strategy": "no", "max_grad_norm": 0.05, **options}
    arguments = hf.TrainingArguments(
        str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=1, report_to=[],
        disable_tqdm=True, use_cpu=True, **settings,
    )  # fmt: skip
    trainer = hf.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, schedule))
    trainer.remove_callback(hf.PrinterCallback)
    return trainer


def history(trainer: Any) -> list[tuple[float, float, float]]:
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [(entry["loss"], entry.get("grad_norm", 1.0), entry["learning_rate"]) for entry in entries]


def assert_same_training(want: Any, got: Any) -> None:
    flat: list[list[float]] = [[x for entry in history(each) for x in entry] for each in (want, got)]
    assert len(flat[0]) == 24
    assert flat[1] == pytest.approx(flat[0], rel=1e-4)
    assert min(norm for _, norm, _ in history(want)) > 0.05  # clipped
    state = got.model.state_dict()
    for name, value in want.model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("max_grad_norm", [0.05, 0.0])
def test_it_trains_as_adamw_does(tmp_path: Path, max_grad_norm: float) -> None:
    want, got = (make(tmp_path, rows, max_grad_norm=max_grad_norm) for rows in (False, True))
    clip_rows(got.accelerator)
    for trainer in (want, got):
        trainer.train()
    assert_same_training(want, got)


def test_resumed_from_a_checkpoint(tmp_path: Path) -> None:
    want = make(tmp_path, False)
    want.train()
    first = make(tmp_path, True, max_steps=4, save_strategy="steps", save_steps=4)
    clip_rows(first.accelerator)
    first.train()
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert list(saved) == ["optimizers"]
    again = make(tmp_path, True)
    clip_rows(again.accelerator)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    assert_same_training(want, again)


def test_torch_itself_refuses_row_gradients(tmp_path: Path) -> None:
    """If this fails, `clip_rows` is not needed any more."""
    with pytest.raises((NotImplementedError, RuntimeError), match="Sparse"):
        make(tmp_path, True).train()


def test_several_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 processes: row gradients of replicas have to be averaged"):
        clip_rows(SimpleNamespace(num_processes=2))


def two(rate: float = 0.1) -> tuple[nn.Linear, nn.Linear, RowsAndRest]:
    torch.manual_seed(0)
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    return a, b, RowsAndRest(torch.optim.AdamW(a.parameters(), rate), torch.optim.SGD(b.parameters(), rate))


def test_one_optimizer_of_two() -> None:
    a, b, both = two()
    before = [p.detach().clone() for p in (*a.parameters(), *b.parameters())]
    calls: list[int] = []

    def closure() -> Any:
        calls.append(1)
        both.zero_grad()
        loss = b(a(torch.ones(1, 2))).sum()
        loss.backward()
        return loss

    assert isinstance(both.step(closure), Tensor)
    assert calls == [1]
    assert all(not torch.equal(x, p) for x, p in zip(before, (*a.parameters(), *b.parameters()), strict=True))
    *_, other = two(rate=0.7)
    other.load_state_dict(both.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.1]
    torch.optim.lr_scheduler.LambdaLR(other, lambda step: 0.5)
    assert [optimizer.param_groups[0]["lr"] for optimizer in other.optimizers] == [0.05, 0.05]


def test_states_and_parameters_that_it_refuses() -> None:
    a, _, both = two()
    with pytest.raises(ValueError, match=r"a state with \['param_groups', 'state'\] is not one of RowsAndRest"):
        both.load_state_dict(torch.optim.SGD(a.parameters(), 0.1).state_dict())
    with pytest.raises(ValueError, match="more than one parameter group"):
        RowsAndRest(torch.optim.SGD(a.parameters(), 0.1), torch.optim.SGD(a.parameters(), 0.1))
