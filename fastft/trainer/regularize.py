"""What keeps a model from learning its data by heart: dropout rates, and noise on the input embeddings."""

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from fastft.embedding.model import own_weight, owner_of

RATE = re.compile(r"(^|_)(dropout|pdrop)(_|$)")  # attention_dropout, hidden_dropout_prob, resid_pdrop, dropout_rate


def dropout_settings(config: Any, rate: float) -> dict[str, Any]:
    """Every dropout rate in a transformers configuration, set to `rate`: overrides for `load_model`.

    Those of a sub-configuration come as a mapping of their own: {"encoder": {"hidden_dropout_prob": 0.1}, ...}. What
    drops whole layers (layerdrop) or paths is no dropout rate.

    Raises:
        ValueError: there is none; names the type of the model.
    """
    found = _rates(config, rate)
    if not found:
        raise ValueError(
            f"dropout is {rate}, but a {config.model_type} has no dropout: leave it out (null); lora has its own, "
            "as in {r: 16, lora_dropout: 0.05}"
        )
    return found


def _rates(config: Any, rate: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and RATE.search(name):
            found[name] = rate
        elif hasattr(value, "to_dict") and hasattr(value, "model_type") and (inner := _rates(value, rate)):
            found[name] = inner
    return found


class Neftune:
    r"""NEFTune: noise on what the input embedding gives, in training mode only, until `remove()`.

        e_i + alpha / sqrt(L d) u_i,   u_i uniform in [-1, 1]^d     L: tokens of the row, padding left out; d: width

    Drawn from torch's generator of the device, so that a trainer that seeds it per step repeats it. L is counted from a
    two-dimensional attention mask; without one (packed rows) it is the row's width. Of an encoder-decoder both stacks
    get noise, if they share the table.

    Args:
        model: a transformers model, or one wrapped (PEFT, DDP), with everything put onto it and its final input
            embedding: one that is replaced later, as by `SparseEmbedding`, has no noise. `TrainableRows` may come
            before or after.
        alpha: 5 to 15 in the paper.

    Source: Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning".
    """

    def __init__(self, model: Any, alpha: float) -> None:
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha is {alpha!r}; wanted a finite number > 0")
        owner = owner_of(model)
        weight = own_weight(owner.get_input_embeddings())
        modules = dict(owner.named_modules(remove_duplicate=False))
        lookups = [path for path, m in modules.items() if isinstance(m, nn.Embedding) and own_weight(m) is weight]
        if not lookups:
            kind = type(owner.get_input_embeddings()).__name__
            raise TypeError(f"the input embedding of {type(owner).__name__} is a {kind}; expected a torch.nn.Embedding")
        around = {path[: end.start()] for path in lookups for end in re.finditer(r"\.", path)} | {""}
        self.alpha, self.mask = alpha, None
        self.hooks: list[Any] = [
            module.register_forward_pre_hook(self._see_mask, with_kwargs=True)
            for module in {id(modules[path]): modules[path] for path in around}.values()
        ]
        for lookup in {id(modules[path]): modules[path] for path in lookups}.values():
            self.hooks.append(lookup.register_forward_hook(self._add_noise, with_kwargs=True))

    def remove(self) -> None:
        """Take the noise off the model."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.mask = [], None

    def _see_mask(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Of each stack: what is nearest around the embedding is called last."""
        if "attention_mask" in kwargs:
            self.mask = kwargs["attention_mask"]

    def _add_noise(self, module: Any, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        ids = args[0] if args else kwargs["input"]
        if not module.training or ids.ndim != 2:  # TrainableRows looks up single rows
            return None
        length: Any = ids.shape[1]
        if isinstance(self.mask, Tensor) and self.mask.shape == ids.shape:
            length = self.mask.to(torch.float32).sum(1).clamp(min=1)[:, None, None]  # (B, 1, 1)
        bound = self.alpha / (length * output.shape[-1]) ** 0.5
        noise: Tensor = (2 * torch.rand_like(output) - 1) * bound
        return output + noise.to(output.dtype)
