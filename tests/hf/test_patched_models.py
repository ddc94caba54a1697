"""Patched models at work: generation, evaluation, checkpointing, autocast, compilation, DDP, transformers.Trainer."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import LENGTH, VOCAB, assert_equal, assert_same, batch_for, is_fused, model_and_batch, run
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastft.hf import patch, unpatch
from fastft.losses import cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")


def prompt(batch: dict[str, Tensor]) -> dict[str, Any]:
    ids = batch["input_ids"][:1]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "pad_token_id": 0}


@pytest.mark.parametrize("how", ["greedy", "sample", "beam", "beam_sample", "lookup"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generate(name: str, how: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "greedy": {"output_logits": True, "return_dict_in_generate": True},
        "sample": {"do_sample": True, "num_return_sequences": 2},
        "beam": {"num_beams": 3},
        "beam_sample": {"num_beams": 2, "do_sample": True},
        "lookup": {"prompt_lookup_num_tokens": 2},
    }
    model, batch = model_and_batch(name)
    model.eval()

    def generate() -> Any:
        torch.manual_seed(0)
        return model.generate(**prompt(batch), **options[how])

    want = generate()
    patch(model)
    got = generate()
    if how == "greedy":
        assert all(type(z) is Tensor for z in got.logits)
        assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))
        got, want = got.sequences, want.sequences
    assert torch.equal(got, want)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
def test_evaluation(name: str, context: Callable[[], Any]) -> None:
    model, batch = model_and_batch(name)
    model.eval()
    with context():
        want = model(**batch)
        got = patch(model)(**batch)
        assert is_fused(got)
        assert not got.loss.requires_grad
        torch.testing.assert_close(got.loss, want.loss)
        assert torch.equal(got.logits.argmax(-1), want.logits.argmax(-1))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    model, batch = model_and_batch(name)
    want = run(model, batch)
    patch(model).gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_same(want, run(model, batch, **({"use_cache": False} if name != "bert" else {})))


@pytest.mark.parametrize("name", ["llama", "bert", "bart", "gemma2"])
def test_autocast(name: str) -> None:
    """Against fp32, no further off than the unpatched model is."""
    model, batch = model_and_batch(name)
    _, exact = run(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        want, got = run(model, batch), run(patch(model), batch)
    assert is_fused(got[0])
    assert got[0].loss.dtype == want[0].loss.dtype
    assert got[0].logits.dtype == want[0].logits.dtype
    torch.testing.assert_close(got[0].loss, want[0].loss, rtol=1e-2, atol=0)

    def error(grads: dict[str, Tensor]) -> float:
        return sum((grads[n].float() - g).square().sum().item() for n, g in exact.items())

    assert {n: g.dtype for n, g in got[1].items()} == {n: g.dtype for n, g in want[1].items()}
    assert error(got[1]) <= 1.2 * error(want[1])


@pytest.mark.parametrize("name", ["llama", "bert", "cohere", "t5"])
def test_to_another_dtype_after_patch(name: str) -> None:
    model, batch = model_and_batch(name)
    want = copy.deepcopy(model).bfloat16()(**batch)
    got = patch(model).to(torch.bfloat16)(**batch)
    assert is_fused(got)
    torch.testing.assert_close(got.loss.float(), want.loss.float(), rtol=1e-2, atol=0)
    assert got.loss.dtype == torch.float32
    assert torch.equal(got.logits, want.logits)


def test_logits_read_after_the_step_are_refused() -> None:
    for options in ({}, {"fused": True}, {"foreach": True}):
        model, batch = model_and_batch("llama")
        optimizer = torch.optim.AdamW(patch(model).parameters(), **options)
        read, unread = model(**batch), model(**batch)
        kept = read.logits.argmax(-1)
        read.loss.backward()
        optimizer.step()
        assert torch.equal(read.logits.argmax(-1), kept)
        with pytest.raises(RuntimeError, match=r"optimizer.step"):
            unread.logits.argmax(-1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_loss_taken_outside_the_model(name: str) -> None:
    """As the trainer does it: no labels for the model, token weights and num_items for the loss."""
    model, batch = model_and_batch(name)
    target = batch.pop("labels")
    weight = torch.linspace(0, 2, target.numel()).view(target.shape)
    options = {"token_weight": weight[:, 1:], "num_items": 20.0}

    def loss() -> tuple[Any, dict[str, Tensor]]:
        output = model(**batch)
        output.loss = cross_entropy(output.logits[:, :-1], target[:, 1:], **options)
        model.zero_grad()
        output.loss.backward()
        return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    want = loss()
    patch(model)
    assert_same(want, loss())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own
@pytest.mark.parametrize("name", ["llama", "bert", "gemma2"])
def test_compiled_model_is_fused(name: str) -> None:
    """In one graph up to the head, and without compiling again from step to step."""
    model, batch = model_and_batch(name)
    want = run(model, batch)
    graphs: list[torch.fx.GraphModule] = []

    def noted(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(patch(model), backend=noted)
    compiled(**batch)
    first = len(graphs)
    for _ in range(10):
        model.zero_grad()
        output = compiled(**batch)
        output.loss.backward()
        assert_same(want, (output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert len(graphs) == first
    body = [sum(node.op.startswith("call") for node in graph.graph.nodes) for graph in graphs]
    assert max(body) > 0.8 * sum(body)


def test_compiled_whole_graph_is_refused_with_advice() -> None:
    model, batch = model_and_batch("llama")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"fullgraph=True call fastft.unpatch"):
        torch.compile(patch(model), backend="eager", fullgraph=True)(**batch)
    want = model(**batch).loss
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(unpatch(model), backend="eager", fullgraph=True)(**batch).loss, want)


def test_compiled_backbone_is_fused() -> None:
    model, batch = model_and_batch("llama")
    want = run(model, batch)
    patch(model).model = torch.compile(model.model, backend="eager")
    got = model(**batch)
    assert is_fused(got)
    torch.testing.assert_close(got.loss, want[0].loss)


def test_compiled_function_of_logits() -> None:
    model, batch = model_and_batch("llama")
    want = model(**batch).logits
    patch(model)
    for function in (lambda z: (z * 2).softmax(-1), lambda z: z.argmax(-1), lambda z: z[:, -1] / 3):
        got = torch.compile(function, backend="eager")(model(**batch).logits)
        assert torch.equal(got, function(want))


def test_export_and_functional_call() -> None:
    model, batch = model_and_batch("llama")
    patch(model.eval())
    halved = {name: p.detach() / 2 for name, p in model.named_parameters()}
    got = torch.func.functional_call(model, halved, (), batch)
    want = unpatch(copy.deepcopy(model))
    want.load_state_dict(halved)
    want = want(**batch)
    assert is_fused(got)
    torch.testing.assert_close(got.loss, want.loss)
    assert torch.equal(got.logits, want.logits)
    inputs = {"input_ids": batch["input_ids"], "use_cache": False}
    program = torch.export.export(model, (), inputs)
    torch.testing.assert_close(program.module()(**inputs).logits, unpatch(model)(**inputs).logits)


def keep(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """The sum of gradients over one rank."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_distributed_data_parallel(options: dict[str, bool]) -> None:
    """One rank of a process group that has no threads to wait for."""
    model, batch = model_and_batch("llama")
    want = run(model, batch)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        parallel = patch(nn.parallel.DistributedDataParallel(model, **options))
        parallel.register_comm_hook(None, keep)
        run(parallel, batch)
        assert_equal(want, run(parallel, batch))
    finally:
        torch.distributed.destroy_process_group()


def test_transformers_trainer(tmp_path: Path) -> None:
    """Two steps of accumulation, clipping, and an evaluation that gathers logits: the same as unpatched."""
    rows = [{k: v[i] for k, v in batch_for("llama", 8).items()} for i in range(1, 8)]

    def train(prepare: Callable[[Any], Any]) -> tuple[list[float], Tensor]:
        model, _ = model_and_batch("llama")
        arguments = hf.TrainingArguments(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, max_grad_norm=0.1,
        )  # fmt: skip
        trainer = hf.Trainer(prepare(model), arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        predictions = torch.from_numpy(trainer.predict(rows).predictions)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return [*losses, trainer.evaluate()["eval_loss"]], predictions

    want, got = train(lambda model: model), train(patch)
    assert len(want[0]) == 4
    assert got[0] == pytest.approx(want[0], rel=1e-4)
    assert got[1].shape == (7, LENGTH, VOCAB)
    torch.testing.assert_close(got[1], want[1], rtol=1e-3, atol=1e-4)
