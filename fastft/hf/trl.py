"""TRL's `SFTTrainer` with fastft's loss in the place of its chunked one; its metrics come from the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastft.hf.compute_loss import IGNORED, token_loss
from fastft.hf.patch import patch
from fastft.hf.versions import need

transformers, trl = need("transformers", __name__), need("trl", __name__)


class FusedSFTTrainer(trl.SFTTrainer):  # type: ignore[misc,name-defined]
    """`trl.SFTTrainer`, argument for argument, whose loss is that of a patched model.

    Loss, `entropy`, `mean_token_accuracy` and `num_tokens` are TRL's numbers. TRL (1.16) runs the model's backbone by
    itself and then a chunked head of its own; here the model's own forward runs, so that whatever it does to logits
    (scales, softcaps, biases, heads of several layers) is as the model has it, and the head sees supervised tokens
    only on every device. `loss_type` "nll" and "dft" are taken.

    Raises:
        TypeError, ValueError: as `fastft.patch`.
        ValueError: label smoothing, `compute_loss_func`, router losses (MoE), or sequence parallelism: use TRL's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        asked = {
            "compute_loss_func": self.compute_loss_func is not None and self.args.loss_type != "dft",  # TRL 1.13's own
            "label_smoothing_factor": self.label_smoother is not None,
            "router_aux_loss_coef": self.aux_loss_enabled,
            "sequence or context parallelism": self.get_sp_size() * self.get_cp_size() > 1,
        }
        for name, wanted in asked.items():
            if wanted:
                raise ValueError(f"FusedSFTTrainer does not take {name}: use trl.SFTTrainer, whose own loss does")
        patch(self.model)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"]
        given = {name: value for name, value in inputs.items() if name not in ("labels", "use_cache")}
        outputs = model(**given, use_cache=False)
        count = (labels[..., 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        count = torch.as_tensor(count).clamp(min=1)
        if self.args.loss_type == "dft":  # arXiv:2508.05629
            nll, stats = token_loss(outputs.logits, labels, True, reduction="none", return_stats=True)
            loss = (nll * (-nll.detach()).exp()).sum() / count
        else:
            loss, stats = token_loss(outputs.logits, labels, True, num_items=count, return_stats=True)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        self._record(labels, stats, inputs)
        return (loss, outputs) if return_outputs else loss

    def _record(self, labels: Tensor, stats: Any, inputs: dict[str, Any]) -> None:
        """TRL's metrics: means over the supervised tokens of all processes."""
        mode = "train" if self.model.training else "eval"
        sums = torch.stack([(labels[..., 1:] != IGNORED).sum(), stats.entropy.sum(), stats.correct.sum()])
        count, entropy, correct = self.accelerator.gather_for_metrics(sums[None]).sum(0).tolist()
        self._metrics[mode]["entropy"].append(entropy / max(count, 1))
        self._metrics[mode]["mean_token_accuracy"].append(correct / max(count, 1))
        if mode == "train":
            mask = inputs.get("attention_mask")
            tokens = mask.sum() if mask is not None else torch.tensor(labels.numel(), device=labels.device)
            self._total_train_tokens += self.accelerator.gather_for_metrics(tokens).sum().item() // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
