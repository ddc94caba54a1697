"""AdamW over a model's trainable parameters; norms and biases are not decayed."""

from torch import nn
from torch.optim import AdamW

from fastft.trainer.config import TrainConfig


def adamw(model: nn.Module, config: TrainConfig) -> AdamW:
    """torch's fused AdamW. Parameters with fewer than two dimensions (norms, biases) get no weight decay.

    Raises:
        ValueError: nothing in the model is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter: every one has requires_grad=False")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
