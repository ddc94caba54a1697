"""How many FLOPs training has to do, from the tokens that are there, and the share of this device's rate that makes.

One multiply-add counts as two. Norms, activations, softmax and look-ups count nothing, and so do padding, logits that
nothing is learned of, and what activation checkpointing does a second time.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastft.data import Batch
from fastft.data.attention import REFUSALS, asking, bare, experts, forward, layer_kinds, window
from fastft.embedding.model import ROWS
from fastft.trainer.reporting.seen import lengths_of, seen_pairs

PROBE = {"source": 7, "target": 5}  # tokens of the forward pass that shows what runs on what: encoder's, decoder's
OTHERS = ("key_value_states", "encoder_hidden_states")  # what attention to another side is given as
RATE_SECONDS = 0.2


@dataclass(frozen=True)
class Layer:
    """A module with parameters that ran. It multiplies by them, if at all, on every token of a side ("source" is a
    decoder-only model's too), once for each "row" of a batch, or, as the "head" does, on what is learned.

    share: of its weights that each of these meets."""

    module: nn.Module
    on: str | None
    share: float = 1.0


@dataclass(frozen=True)
class Attention:
    """Every position of `query` with those of `key`: all of its sample, those before it, or the nearest `span`."""

    query: str
    key: str
    width: int
    causal: bool
    span: int | None

    def pairs(self, lengths: dict[str, list[int]]) -> float:
        """How many positions see one another; half of all where they see only what is before."""
        sides = zip(lengths[self.query], lengths[self.key], strict=True)
        if self.query != self.key or self.span is None:
            found = sum(float(a * b) for a, b in sides)
        else:
            found = sum(a * a - max(0, a - self.span) ** 2 for a, _ in sides)
        return found / 2 if self.causal else found


class Flops:
    """The matrix products of a model's training, per batch.

        forward   2 rows |W|              each linear layer: rows are tokens, of encoder or decoder as it may be; for a
                                          pooler, samples; for the head, labels that count, with |W| = D V; of experts
                                          those count that a token goes to
                + 4 heads head_dim pairs  each attention: pairs = sum len^2, half of it if causal; with a window w
                                          len^2 - (len - w)^2 in its place; a mask (B, 1, T, T) says it itself
        backward  the same once more for dX, if anything that ran before learns; attention: twice
                + the same once more for dW, if W learns (of `trainable_rows`, those rows)

    So it is three times the forward pass where all parameters learn, two where they are frozen behind some that learn,
    and one before any that does. Layers count as if they ran one after the other. `refresh` sees what learns now.

    The layers are found by one forward pass over a few tokens, in which dropout, random numbers and gradients stay as
    they are; all processes of a sharded model have to make it. Convolutions and state-space recurrences are left out.

    Args:
        model: bare or wrapped, on its device, patched or not.
        dtype: of its matrix products, that of autocast if there is one.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._device, self._dtype = next(model.parameters()).device, dtype
        try:
            self._ran = _ran(model)
        except REFUSALS:
            self._ran = []
        self.refresh()

    @property
    def known(self) -> bool:
        """Whether the model took the forward pass that shows its layers; else there are no FLOPs to be told."""
        return bool(self._ran)

    def refresh(self) -> None:
        """Look anew at what learns."""
        self._per: dict[str, float] = {}  # FLOPs for each token of a side, row of a batch, or label
        self._attentions = Counter[Attention]()  # FLOPs for each pair of positions
        learned = False
        for part in self._ran:
            if isinstance(part, Attention):
                self._attentions[part] += 4 * part.width * (3 if learned else 1)
                continue
            if part.on is not None:
                size, learning = _sizes(part.module)
                flops = 2 * part.share * (size * (2 if learned else 1) + learning)
                self._per[part.on] = self._per.get(part.on, 0.0) + flops
            learned = learned or any(p.requires_grad for p in part.module.parameters(recurse=False))

    def of(self, batches: Sequence[Batch]) -> float:
        """FLOPs of forward and backward passes over some batches."""
        return float(sum(self._of(batch) for batch in batches))

    def utilization(self, flops: float, seconds: float) -> float:
        """The share of what `matmul_rate` measured: a product of large matrices on this device in this dtype, not a
        number of a datasheet. 0 where no time went by."""
        return flops / seconds / matmul_rate(self._device, self._dtype) if seconds else 0.0

    def _of(self, batch: Batch) -> float:
        if not batch.tokens:
            return 0.0
        lengths, seen = lengths_of(batch), seen_pairs(batch)
        count: dict[str, float] = {side: sum(found) for side, found in lengths.items()}
        count |= {"row": len(batch.inputs["input_ids"]), "head": batch.targets[0].count}
        products = sum(flops * count[on] for on, flops in self._per.items())
        for part, flops in self._attentions.items():
            products += flops * (part.pairs(lengths) if seen is None else seen)
        return products


def _sizes(module: Any) -> tuple[int, int]:
    """Weights that a layer multiplies by, and those that learn."""
    own = {name: p for name, p in module.named_parameters(recurse=False) if p.dim() > 1}
    size = sum(p.numel() for name, p in own.items() if name != ROWS)
    if isinstance(module, nn.Linear):  # a quantised one keeps its weight in another shape
        size = module.in_features * module.out_features
    return size, sum(p.numel() for p in own.values() if p.requires_grad)


def _ran(model: Any) -> list[Layer | Attention]:
    """What runs in a forward pass, in that order."""
    inner, ran = bare(model), list[Layer | Attention]()
    config = inner.config.get_text_config()
    head = inner.get_output_embeddings()
    heads = set() if head is None else set(head.modules())
    sides = {tokens: side for side, tokens in PROBE.items()} | {1: "row"}
    many = experts(config)

    def layer(module: nn.Module, args: Any, kwargs: Any) -> None:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        most = max(p.dim() for p in module.parameters(recurse=False))
        on, share = None, 1.0
        if x is not None and x.is_floating_point() and (most == 2 or (most == 3 and many)):
            rows = x.shape[:-1].numel()
            on, share = (sides[rows], 1.0) if rows in sides else ("source", rows / PROBE["source"])
            on = "head" if module in heads else on
            share *= config.num_experts_per_tok / many if most == 3 else 1.0
        ran.append(Layer(module, on, share))

    def attention(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        other = next((kwargs[name] for name in OTHERS if kwargs.get(name) is not None), x)
        width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        causal = getattr(module, "is_causal", getattr(module, "is_decoder", False)) and other is x
        span = getattr(module, "sliding_window", None if layer_kinds(config) else window(config))
        ran.append(
            Attention(sides.get(x.shape[1], "source"), sides.get(other.shape[1], "source"), width, bool(causal), span)
        )

    handles = [
        *(
            module.register_forward_pre_hook(layer, with_kwargs=True)
            for module in inner.modules()
            if next(module.parameters(recurse=False), None) is not None
        ),
        *(
            module.register_forward_hook(attention, with_kwargs=True)
            for module in inner.modules()
            if ["Attention" in type(m).__name__ for m in module.modules()].count(True) == 1
            and "Attention" in type(module).__name__
        ),
    ]
    try:
        with asking(model):
            forward(model, _probe(inner.config.is_encoder_decoder, next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _probe(two_sided: bool, device: torch.device) -> Batch:
    inputs = {}
    for stem, tokens in (("", PROBE["source"]), ("decoder_", PROBE["target"]))[: 1 + two_sided]:
        inputs[f"{stem}input_ids"] = torch.arange(tokens, device=device)[None]
        inputs[f"{stem}attention_mask"] = torch.ones(1, tokens, dtype=torch.int64, device=device)
    return Batch(inputs, (), sum(PROBE.values()))


def matmul_rate(device: torch.device | str, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two large square matrices, measured once per device, dtype and number of threads: the best
    of a fifth of a second."""
    return _rate(torch.device(device), dtype, torch.get_num_threads())


@cache
def _rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    n = 4096 if device.type == "cuda" else 1024
    a, b = (torch.full((n, n), 1 / n, dtype=dtype, device=device) for _ in range(2))
    best, began = math.inf, time.perf_counter()
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        while time.perf_counter() - began < RATE_SECONDS or best == math.inf:
            _wait(device)
            started = time.perf_counter()
            torch.mm(a, b)
            _wait(device)
            best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
