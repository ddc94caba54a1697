"""TiedEmbedding: dense training's gradient of a tied table, without a second one of its size."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from processes import run_on
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

from embedding.small import batch, llama
from fastft import patch
from fastft.embedding import SparseEmbedding, TiedEmbedding, tie_lookups
from fastft.embedding.tied_gradient import RowSums, references_when_alone
from fastft.losses import linear_cross_entropy

V, D = 50, 8
IDS = torch.tensor([[3, 7, 7], [49, 3, 3]])
Head = Callable[[Tensor, Tensor], Tensor]


def linear(h: Tensor, w: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(h, w).flatten(0, 1), IDS.flatten())


def fused(h: Tensor, w: Tensor) -> Tensor:
    return linear_cross_entropy(h, w, IDS)


def chunks(h: Tensor, w: Tensor) -> Tensor:
    return linear_cross_entropy(h, w, IDS, memory_budget=3 * V * 4)


HEADS: dict[str, Head] = {
    "linear": linear,
    "fused": fused,
    "chunks": chunks,
    "no head": lambda h, w: h.square().sum(),
    "nothing supervised": lambda h, w: linear_cross_entropy(h, w, torch.full_like(IDS, -100)) + h.sum(),
    "expanded": lambda h, w: h.sum() + w.sum(),
    "two": lambda h, w: linear(h, w) + fused(h, w),
    "checkpointed": lambda h, w: checkpoint(linear, h, w, use_reentrant=False),
    "checkpointed, reentrant": lambda h, w: checkpoint(lambda h: linear(h, w), h, use_reentrant=True),
    "bias of its own": lambda h, w: linear(h, w + torch.ones_like(w, requires_grad=True).exp()),
}


def pair(dtype: torch.dtype = torch.float32, padding_idx: int | None = None) -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(0)
    plain = nn.Embedding(V, D, padding_idx, dtype=dtype)
    return TiedEmbedding.from_embedding(copy.deepcopy(plain)), plain


def run(embedding: nn.Embedding, head: Head, ids: Tensor = IDS) -> Tensor:
    return head(torch.tanh(embedding(ids)), embedding.weight)


def grad_of(embedding: nn.Embedding) -> Tensor:
    grad = embedding.weight.grad
    assert grad is not None
    assert type(grad) is Tensor
    assert grad.layout is torch.strided
    return grad


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
def test_gradient(head: Head, padding_idx: int | None) -> None:
    """As torch's, after one and two passes; by torch.autograd.grad; and the same bits when repeated."""
    ours, plain = pair(padding_idx=padding_idx)
    assert torch.equal(ours(IDS), plain(IDS))
    for _ in range(2):
        for module in (ours, plain):
            loss = run(module, head)
            if head is not HEADS["checkpointed, reentrant"]:  # which torch.autograd.grad refuses
                (found,) = torch.autograd.grad(loss, module.weight, retain_graph=True)
                (expected,) = torch.autograd.grad(run(plain, head), plain.weight)
                assert type(found) is Tensor
                torch.testing.assert_close(found, expected)
            loss.backward()
        torch.testing.assert_close(grad_of(ours), grad_of(plain))
    again, _ = pair(padding_idx=padding_idx)
    for _ in range(2):
        run(again, head).backward()
    assert torch.equal(grad_of(again), grad_of(ours))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(0,), (1,), (400,)], ids=str)
def test_error_is_at_most_torchs(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """In half types it is that of rounding once."""
    torch.manual_seed(1)
    ids, upstream, of_head = torch.randint(5, shape), torch.randn(*shape, D).to(dtype), torch.randn(V, D).to(dtype)
    found = []
    for module in (*pair(dtype), pair(dtype)[1].double()):
        g, h = upstream.to(module.weight.dtype), of_head.to(module.weight.dtype)
        ((module(ids) * g).sum() + (module.weight * h).sum()).backward()
        found.append(grad_of(module).double())
    ours, plain, exact = found
    assert (ours - exact).abs().max() <= (plain - exact).abs().max() + 1e-15
    if dtype != torch.float64:
        assert torch.equal(ours, exact.to(dtype).double())


def watch(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each meeting of rows and a head's gradient to come, whether that is written to."""
    written: list[bool] = []
    joined = RowSums.joined

    def watched(self: RowSums, grad: Tensor, held: Any) -> Tensor:
        result = joined(self, grad, held)
        written.append(result.data_ptr() == grad.data_ptr())
        return result

    monkeypatch.setattr(RowSums, "joined", watched)
    return written


@pytest.mark.parametrize("head", [linear, fused, chunks], ids=["linear", "fused", "chunks"])
def test_no_second_gradient_is_made(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(references_when_alone(torch.device("cpu"))) == 2
    ours, _ = pair()
    twice = lambda h, w: head(h + ours(IDS.flip(0)), w)  # noqa: E731  encoder and decoder
    written = watch(monkeypatch)
    run(ours, twice).backward()
    assert written == [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fuses", [False, True], ids=["its own loss", "patched"])
def test_no_second_gradient_of_a_model_is_made(
    fuses: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(tied=True, dtype=dtype)
    if fuses:
        patch(model)
    tie_lookups(model)
    written = watch(monkeypatch)
    model(**batch()).loss.backward()
    assert written == [True]


def test_a_gradient_that_another_holds_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: Tensor) -> Tensor:
            return w.view_as(w)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            kept.extend((grad, grad.clone()))
            return grad

    ours, plain = pair()
    written = watch(monkeypatch)
    run(ours, lambda h, w: linear(h, Watch.apply(w))).backward()  # type: ignore[no-untyped-call]
    assert written == [False]
    assert torch.equal(*kept)
    run(plain, linear).backward()
    torch.testing.assert_close(grad_of(ours), grad_of(plain))


def test_a_gradient_that_is_still_to_be_used_is_not_written_to() -> None:
    """The sum w + u gives both one gradient, and u's comes to exp after the lookup has run."""
    found = []
    for module in pair():
        leaf = torch.zeros(V, D, requires_grad=True)
        u = leaf.exp()
        linear(torch.tanh(module(IDS)), module.weight + u).backward()
        found.append((leaf.grad, grad_of(module)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_second_derivative() -> None:
    found = []
    for module in pair():
        (grad,) = torch.autograd.grad(run(module, linear), module.weight, create_graph=True)
        grad.square().sum().backward()
        found.append(grad_of(module))
    torch.testing.assert_close(*found)


def test_repeated_backward_hooks_scaler_and_autocast() -> None:
    found = []
    for module in pair():
        seen: list[Tensor] = []
        module.weight.register_hook(lambda g, seen=seen: seen.append(g.clone()))
        module.weight.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(module, linear)
        loss.backward(retain_graph=True)
        loss.backward()
        found.append([*seen, grad_of(module)])
        scaler, sgd = torch.amp.GradScaler("cpu", init_scale=2.0**120), torch.optim.SGD([module.weight], lr=0.1)
        before = module.weight.detach().clone()
        sgd.zero_grad()
        scaler.scale(run(module, lambda h, w: linear(h, w) + 1e9 * h.sum())).backward()
        scaler.step(sgd)  # type: ignore[no-untyped-call]
        assert torch.equal(module.weight, before)
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_a_weight_that_is_computed() -> None:
    found = []
    for module in pair():
        nn.utils.parametrizations.weight_norm(module)
        run(module, linear).backward()
        h = module(IDS)
        h.square().sum().backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*found)


def test_switching_keeps_module_parameter_and_state() -> None:
    plain = nn.Embedding(V, D, 1)
    weight, optimizer = plain.weight, torch.optim.SGD(plain.parameters(), lr=0.1)
    ours = TiedEmbedding.from_embedding(plain)
    assert ours is plain
    assert ours is TiedEmbedding.from_embedding(ours)
    assert ours.weight is weight is optimizer.param_groups[0]["params"][0]
    assert list(ours.state_dict()) == ["weight"]
    assert repr(ours) == "TiedEmbedding(50, 8, padding_idx=1)"
    assert TiedEmbedding(V, D).weight.shape == (V, D)
    with torch.no_grad():
        assert not ours(IDS).requires_grad
    assert torch.equal(ours(IDS.int()), ours(IDS))
    weight.requires_grad_(False)
    assert not ours(IDS).requires_grad


def test_a_class_that_scales_goes_on_doing_so() -> None:
    plain = BartScaledWordEmbedding(V, D, 1, embed_scale=3.0)
    ours: Any = TiedEmbedding.from_embedding(copy.deepcopy(plain))
    assert isinstance(ours, BartScaledWordEmbedding)
    assert torch.equal(ours(IDS), plain(IDS))
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    modules = [ours, plain, copy.deepcopy(ours), torch.load(buffer, weights_only=False)]
    for module in modules:
        assert type(module) is (BartScaledWordEmbedding if module is plain else type(ours))
        run(module, linear).backward()
    for module in modules:
        torch.testing.assert_close(grad_of(module), grad_of(plain))


def t5() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": V, "d_model": D, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    more: dict[str, Any] = {"dropout_rate": 0.0, "decoder_start_token_id": 0, "tie_word_embeddings": True}
    return T5ForConditionalGeneration(T5Config(**sizes, **more))


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_models(kind: str, compiled: bool) -> None:
    """Compiled, the gradient is torch's."""
    grads = []
    for switch in (True, False):
        model = llama(tied=True) if kind == "llama" else t5()
        if switch:
            paths = tie_lookups(model)
            assert paths
            assert all(isinstance(model.get_submodule(path), TiedEmbedding) for path in paths)
        inputs = batch() if kind == "llama" else {"input_ids": IDS, "labels": IDS}
        call: Any = torch.compile(model, backend="aot_eager") if compiled else model
        for _ in range(2):
            call(**inputs).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*grads)


def test_tables_that_are_left_alone() -> None:
    assert tie_lookups(llama(tied=False)) == []
    model = llama(tied=True)
    model.get_input_embeddings().weight.requires_grad_(False)
    assert tie_lookups(model) == []


def test_refused() -> None:
    class Own(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return F.embedding(input, self.weight)

    class More(nn.Embedding):
        def forward(self, input: Tensor, positions: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(input) + positions

    replaced, frozen = nn.Embedding(V, D), nn.Embedding(V, D)
    replaced.forward = replaced.forward  # type: ignore[method-assign]
    frozen.weight.requires_grad_(False)
    for module, error, message in [
        (nn.Linear(2, 2), TypeError, "embedding is a Linear; expected a torch.nn.Embedding"),
        (Own(V, D), TypeError, r"Own.forward\(ids\) does not call torch.nn.Embedding.forward"),
        (More(V, D), TypeError, r"More.forward\(ids\) does not call"),
        (replaced, TypeError, "the forward of this Embedding was replaced"),
        (frozen, ValueError, "weight is frozen"),
        (nn.Embedding(V, D, max_norm=1.0), ValueError, "max_norm is 1.0; TiedEmbedding has none"),
        (SparseEmbedding(V, D), ValueError, "sparse is True"),
    ]:
        kind = type(module)
        with pytest.raises(error, match=message):
            TiedEmbedding.from_embedding(module)  # type: ignore[arg-type]
        assert type(module) is kind
    with pytest.raises(ValueError, match="scale_grad_by_freq is True"):
        TiedEmbedding(V, D, scale_grad_by_freq=True)


class Model(nn.Module):
    def __init__(self, switch: bool) -> None:
        super().__init__()
        self.embed, plain = pair()
        self.embed = self.embed if switch else plain

    def forward(self, ids: Tensor) -> Tensor:
        loss: Tensor = F.linear(torch.tanh(self.embed(ids)), self.embed.weight).square().mean()
        return loss


def replicas_see_the_whole_gradient(rank: int, n: int, sharded: bool) -> None:
    grads = []
    for switch in (True, False):
        model = Model(switch)
        if sharded:
            call: Any = fully_shard(model, mesh=init_device_mesh("cpu", (n,)))
        else:
            call = DistributedDataParallel(model, gradient_as_bucket_view=switch)
        for step in range(2):
            call(IDS + rank - step - 1).backward()
        grad: Any = model.embed.weight.grad
        grads.append(grad.full_tensor() if sharded else grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_replicas(sharded: bool) -> None:
    run_on(2, replicas_see_the_whole_gradient, sharded)
