"""How a batch is given to a model: masks as its attention takes them, no cache; how one is asked what it does."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastft.data.batch import Batch

# What models raise at a batch that they do not take
REFUSALS = (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
PLAIN = frozenset({"full_attention", "sliding_attention"})  # kinds of layers that do what their mask says


def forward(model: Any, batch: Batch) -> Any:
    """The outputs of a model, bare or wrapped, for a batch on its device, as they are when it is trained.

    There is no cache of keys and values: with one, transformers takes a packed row for a single text.

    Raises:
        ValueError: the model's attention takes no mask such as the batch has.
    """
    inner = bare(model)
    options = {"use_cache": False} if "use_cache" in inspect.signature(inner.forward).parameters else {}
    inputs: dict[str, Any] = dict(batch.inputs)
    mask = inputs.get("attention_mask")
    if mask is not None and mask.ndim == 4:
        inputs["attention_mask"] = fitted(mask, inner)
    return model(**inputs, **options)


def fitted(mask: Tensor, model: Any) -> Any:
    """A mask (B, 1, T, T), True where position i sees j, as the model's attention takes it.

    transformers hands a 4-D mask to the layers as it is. `sdpa` takes booleans. Others add it to the scores, so that
    True would only mean a score higher by one: they get 0 and the least number of the model's type. A mask of one's
    own also replaces that of sliding windows; where a row is longer than the window there are therefore two masks, by
    kind of layer.

    Raises:
        ValueError: flash and flex attention take no such mask.
    """
    config = model.config.get_text_config()
    implementation = config._attn_implementation or "eager"
    if "flash" in implementation or "flex" in implementation:
        raise ValueError(
            f"attn_implementation: {implementation!r} takes no mask of who sees whom; 'sdpa' or 'eager' is wanted"
        )
    width = window(config)
    if width is not None and mask.shape[-1] > width and layer_kinds(config):
        place = torch.arange(mask.shape[-1], device=mask.device)
        near = (place[:, None] - place[None, :]).abs() <= width
        return {
            "full_attention": _typed(mask, implementation, model.dtype),
            "sliding_attention": _typed(mask & near, implementation, model.dtype),
        }
    return _typed(mask, implementation, model.dtype)


def _typed(mask: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    if implementation == "sdpa":
        return mask
    least = torch.finfo(dtype).min
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), least)


def window(config: Any) -> int | None:
    """How many tokens back a model's sliding layers see; None without such layers."""
    width = getattr(config, "sliding_window", None)
    kinds = layer_kinds(config)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return int(width) if width and slides else None


def layer_kinds(config: Any) -> set[str]:
    """The kinds of a model's layers in transformers' words; empty where its configuration does not tell."""
    return set(getattr(config, "layer_types", None) or ())


def experts(config: Any) -> int:
    """How many experts share the tokens of a layer; 0 where each token passes through all of a model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    found = next((count for name in names if (count := getattr(config, name, None))), 0)
    return int(max(found) if isinstance(found, list | tuple) else found)


def bare(model: Any) -> Any:
    """The model itself, out of DistributedDataParallel, torch.compile and PEFT, whose `forward` hides what it takes."""
    while isinstance(model, torch.nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = getattr(model, "_orig_mod", None) or model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def asking(model: Any) -> Iterator[None]:
    """Forward passes without dropout or gradients that leave nothing changed: modes and random numbers are put back."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    try:
        model.eval()
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def is_causal(model: Any, tokenizer: Any, output: str = "logits") -> bool:
    """Whether a model reads from left to right by itself: its first logits, `output` by name, do not depend on the
    last token."""
    *ids, other = ordinary_tokens(tokenizer, 6)
    device = next(model.parameters()).device
    with asking(model):
        rows = torch.tensor([ids, [*ids[:-1], other]], device=device)
        outputs = forward(model, Batch({"input_ids": rows, "attention_mask": torch.ones_like(rows)}, (), rows.numel()))
    first = getattr(outputs, output)[:, 0].double()
    return bool((first[0] - first[1]).abs().max() <= 1e-5 * first.abs().max())


def ordinary_tokens(tokenizer: Any, count: int) -> list[int]:
    """`count` tokens that are no control tokens, different ones as far as there are so many."""
    special = set(tokenizer.all_special_ids)
    found = []
    for token in range(len(tokenizer)):
        if token not in special:
            found.append(token)
        if len(found) == count:
            break
    return [found[place % len(found)] for place in range(count)]
