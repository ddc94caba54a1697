"""Where a model's positions begin, and how many it has."""

from typing import Any

from fastft.data.attention import bare

# of a configuration, the first that it has
DECODER_POSITIONS = ("max_decoder_position_embeddings", "max_target_positions", "max_position_embeddings")
POSITIONS = ("max_position_embeddings", "n_positions")


def first_position(model: Any) -> int:
    """The number of a text's first position in the model's table of positions; 0 if it has none.

    RoBERTa and its kin count from `padding_idx` + 1.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and "entity" not in name and hasattr(module, "weight"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else int(padding) + 1
    return 0


def written_positions(model: Any) -> int | None:
    """How many positions there are for what a model writes, its prompt included; of an encoder-decoder, its decoder's.

    None where the configuration sets no bound, as for positions that are relative.
    """
    inner = bare(model)
    paired = bool(getattr(inner.config, "is_encoder_decoder", False))
    config = inner.config.get_text_config(decoder=True) if paired else inner.config.get_text_config()
    found = (getattr(config, name, None) for name in (DECODER_POSITIONS if paired else POSITIONS))
    known = next((number for number in found if number is not None), None)
    return None if known is None else int(known) - first_position(inner.get_decoder() if paired else inner)
