"""The outputs of a model: where its logits of tokens are, and those of the relation of two segments."""

import inspect
from typing import Any

from fastft.data.attention import bare

# the argument that holds the labels in transformers, and the output that they are of
RELATIONS = {"next_sentence_label": "seq_relationship_logits", "sentence_order_label": "sop_logits"}


def relation_output(model: Any) -> str | None:
    """The output that tells the relation of two segments, beside one for tokens; None without such a head."""
    arguments = inspect.signature(bare(model).forward).parameters
    return next((output for name, output in RELATIONS.items() if {name, "labels"} <= arguments.keys()), None)


def token_output(model: Any) -> str:
    """The output with logits of tokens: `prediction_logits` beside a head for the relation, otherwise `logits`."""
    return "prediction_logits" if relation_output(model) else "logits"
