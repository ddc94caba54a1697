"""Patched models on two processes, sharded by FSDP2 or replicated by DDP: the unpatched model's numbers, fused."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from processes import run_on
from tiny_models import VOCAB, Batch, batch_for, is_fused, model_and_batch, run
from torch import Tensor, distributed, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from fastft.hf import LazyLogits, patch, unpatch

BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
FLOAT32 = MixedPrecisionPolicy()


def head_in_root(model: Any, **options: Any) -> None:
    fully_shard(model, **options)


def freed_by_root(model: Any, **options: Any) -> None:
    fully_shard(model, reshard_after_forward=True, **options)


def apart(model: Any, **options: Any) -> None:
    fully_shard(model.lm_head, **options)
    fully_shard(model, **options)


def with_embedding(model: Any, **options: Any) -> None:
    fully_shard([model.model.embed_tokens, model.lm_head], **options)
    fully_shard(model, **options)


def in_block(model: Any, **options: Any) -> None:
    fully_shard([model.bert.embeddings, model.cls], **options)
    fully_shard(model, **options)


def without_root(model: Any, **options: Any) -> None:
    fully_shard(model.lm_head, reshard_after_forward=True, **options)


# The model, and how its head is sharded once its layers are
LAYOUTS: dict[str, tuple[str, Callable[..., None]]] = {
    "in the root": ("llama", head_in_root),
    "in the root, tied": ("gemma2", head_in_root),
    "in a root that frees it": ("llama", freed_by_root),
    "apart": ("llama", apart),
    "with the tied embedding": ("qwen3", with_embedding),
    "in a block, with the tied embedding": ("bert", in_block),
    "without a root": ("llama", without_root),
}


def shard(model: Any, head: Callable[..., None], **options: Any) -> Any:
    options["mesh"] = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in model.bert.encoder.layer if hasattr(model, "bert") else model.model.layers:
        fully_shard(layer, **options)
    head(model, **options)
    return model


def whole(x: Any) -> Tensor:
    """A copy of all of a DTensor, or of a tensor."""
    result: Tensor = (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()
    return result


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def evaluated(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Only the first rank reads the logits: that may not make it wait for the others."""
    with torch.no_grad():
        output = model(**batch)
    return {"loss": output.loss} if distributed.get_rank() else {"loss": output.loss, "logits": output.logits + 0}


class Square(torch.autograd.Function):
    """Its `apply` goes past `__torch_function__`, as C++ extensions do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def steps(model: Any, batches: list[Batch], fused: bool) -> list[dict[str, Tensor]]:
    """Three steps of SGD and four evaluations: every number that comes up."""
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    *batches, other = batches
    numbers = []
    for step, batch in enumerate(batches):
        output = model(**batch)
        assert is_fused(output) == fused
        loss = output.loss
        if step == 1:  # backward takes the last forward first, and frees the head after each
            loss = loss + model(**other).loss
        if step == 2:  # gradients that come by way of the logits
            loss = Square.apply(output.logits).mean() / 10
            loss = loss + model(**other).logits.square().mean() / 10 + model(**other).loss
        loss.backward()
        numbers += [{"loss": loss.detach()}, gradients(model)]
        if step == 1:  # gathers what the optimizer is about to change
            numbers.append(evaluated(model, other))
        optimizer.step()
        optimizer.zero_grad()
        if step != 1:
            numbers.append({name: whole(p) for name, p in model.named_parameters()})
        numbers.append(evaluated(model, other))
    return numbers


def assert_same(got: list[dict[str, Tensor]], want: list[dict[str, Tensor]], rtol: float) -> None:
    for ours, theirs in zip(got, want, strict=True):
        largest = max(float(x.abs().max()) for x in theirs.values())
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * largest / 10)


def same_steps(rank: int, n: int, layout: str, policy: MixedPrecisionPolicy, rtol: float) -> None:
    warnings.filterwarnings("error", "the loss of")
    name, head = LAYOUTS[layout]
    torch.manual_seed(rank)
    batches = [batch_for(name) for _ in range(4)]
    want = steps(shard(model_and_batch(name)[0], head, mp_policy=policy), batches, fused=False)
    patched_first = shard(patch(model_and_batch(name)[0]), head, mp_policy=policy)
    assert_same(steps(patched_first, batches, fused=True), want, rtol)
    sharded_first = patch(shard(model_and_batch(name)[0], head, mp_policy=policy))
    assert_same(steps(sharded_first, batches, fused=True), want, rtol)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps(layout: str) -> None:
    run_on(2, same_steps, layout, FLOAT32, 1e-4)


@pytest.mark.parametrize("layout", ["in the root, tied", "apart"])
def test_mixed_precision(layout: str) -> None:
    run_on(2, same_steps, layout, BF16, 0.3)


def same_unpatched(rank: int, n: int) -> None:
    batch = model_and_batch("llama")[1]
    model, plain = (shard(model_and_batch("llama")[0], apart) for _ in range(2))
    patch(model)(**batch)
    assert type(model.lm_head.weight) is nn.Parameter  # gathered still
    assert unpatch(model) is model
    assert type(model.lm_head).__name__ == type(plain.lm_head).__name__ == "FSDPLinear"
    assert type(model.lm_head.weight) is DTensor
    for each in (model, plain):
        output = each(**batch)
        assert type(output.logits) is Tensor
        assert type(each.lm_head.weight) is DTensor
        output.loss.backward()
    assert_same([gradients(model)], [gradients(plain)], 1e-6)


def test_unpatch() -> None:
    run_on(2, same_unpatched)


def out_of_date(rank: int, n: int) -> None:
    """Gathered weights come and go without counting as changed: what is read late may not be another step's."""
    for head in (head_in_root, apart):
        model, batch = model_and_batch("llama")
        patch(shard(model, head))
        optimizer = torch.optim.SGD(model.parameters(), 0.02)
        outputs = [model(**batch)]
        gathered, version = model.lm_head.weight, model.lm_head.weight._version
        outputs[0].loss.backward()
        with pytest.raises(RuntimeError, match="FSDP, which gives a gathered head back in backward"):
            print(outputs[0].logits)
        if head is apart:
            with torch.no_grad():
                outputs.append(model(**batch))
        optimizer.step()
        assert gathered._version > version  # as often as not, it comes back to the same memory
        model(**batch)
        for output in outputs:
            with pytest.raises(RuntimeError, match=r"left uncomputed.* have changed"):
                print(output.logits)


def test_unread_logits_of_gathered_heads() -> None:
    run_on(2, out_of_date)


def same_by_hand(rank: int, n: int) -> None:
    """The head called as itself, by a training loop that leaves the model's forward out."""
    results = []
    for patched in (False, True):
        model, batch = model_and_batch("llama")
        shard(patch(model) if patched else model, without_root)
        logits = model.lm_head(model.model(batch["input_ids"]).last_hidden_state)
        loss = nn.functional.cross_entropy(logits.view(-1, VOCAB), batch["labels"].view(-1))
        loss.backward()
        assert isinstance(logits, LazyLogits) == patched
        assert not (patched and logits.is_materialized)
        results.append([{"loss": loss.detach()}, gradients(model)])
    assert_same(*results, 1e-5)


def test_head_called_by_itself() -> None:
    run_on(2, same_by_hand)


def same_adapted(rank: int, n: int) -> None:
    """The root, which frees the head, is PEFT's model around the one that computes the loss."""
    torch.manual_seed(rank)
    batches = [batch_for("llama") for _ in range(4)]
    results = []
    for patched in (False, True):
        model = model_and_batch("llama")[0]
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        if patched:
            patch(adapted)
        fully_shard(adapted, mesh=init_device_mesh("cpu", (n,)), reshard_after_forward=True)
        results.append(steps(adapted, batches, fused=patched))
    assert_same(*results, 1e-4)


def test_adapter_around_the_model() -> None:
    run_on(2, same_adapted)


def same_parallel(rank: int, n: int) -> None:
    """A weight that is a DTensor even where it is used: not fused."""
    model, batch = model_and_batch("llama")
    want = run(model, batch)[0].loss
    plan = {"lm_head": ColwiseParallel(output_layouts=Replicate())}
    patch(parallelize_module(model, init_device_mesh("cpu", (n,)), plan))
    with pytest.warns(UserWarning, match="not fused: the weight of its output embedding is a DTensor"):
        loss = model(**batch).loss
    torch.testing.assert_close(loss, want)


def test_tensor_parallel_heads_are_named() -> None:
    run_on(2, same_parallel)


def without_a_label(rank: int, n: int) -> None:
    """A rank without a label gives a loss of 0, where torch gives NaN, and the other one's gradient counts half."""
    model, batch = model_and_batch("llama")
    unpatched, full = run(model, batch)
    loss, want = unpatched.loss, {name: g / n for name, g in full.items()}
    if rank == 1:
        batch["labels"].fill_(-100)
        loss = torch.zeros(())
    for wrap in (DistributedDataParallel, lambda m: shard(m, head_in_root), lambda m: shard(m, apart)):
        model = patch(model_and_batch("llama")[0])
        wrapped = wrap(model)
        output = wrapped(**batch)
        output.loss.backward()
        assert is_fused(output)
        torch.testing.assert_close(output.loss, loss)
        assert_same([gradients(model)], [want], 1e-5)


def test_a_rank_without_a_label() -> None:
    run_on(2, without_a_label)


def same_replicas(rank: int, n: int) -> None:
    torch.manual_seed(rank)
    batches = [batch_for("llama") for _ in range(4)]
    want = steps(DistributedDataParallel(model_and_batch("llama")[0]), batches, fused=False)
    got = steps(DistributedDataParallel(patch(model_and_batch("llama")[0])), batches, fused=True)
    assert_same(got, want, 1e-4)
    patched = patch(model_and_batch("llama")[0])
    sink = DistributedDataParallel(patched, find_unused_parameters=True)  # reads whatever the model gives
    assert_same(steps(sink, batches, fused=False), want, 1e-4)


def test_replicas() -> None:
    run_on(2, same_replicas)
