"""Settings in words: what an objective does, and what a mask leaves."""

from typing import Any

from fastft.data import Objective
from fastft.data.objectives.prefix_lm import PrefixLM
from fastft.trainer.config import TrainConfig

CONVERSATIONS = ("messages", "sharegpt")  # formats with roles


def objective_words(objective: Objective) -> str:
    """What is learned, by name and with the options that matter."""
    name, o = objective.name, objective
    masking = "" if not hasattr(o, "mlm_probability") else _masking(o)
    told = {
        "clm": "causal language modelling: each token is predicted from those before it",
        "prefix_lm": "prefix language modelling: as clm, but the tokens before the learned ones see each other",
        "mlm": f"masked language modelling: {masking}",
        "nsp": f"next-sentence prediction, {_percent(o, 'nsp_probability')} of the pairs not in sequence; {masking}",
        "sop": f"sentence-order prediction, half of the pairs swapped; {masking}",
        "seq2seq": "sequence to sequence: an encoder reads the source, a decoder writes the target",
        "span_corruption": f"span corruption: {_noise(o)}; the decoder writes what was cut out",
        "ul2": f"UL2's mixture of denoisers: {_noise(o)}, longer spans or half of the text, or the rest of a text",
    }
    return f"{name}: {told.get(name, 'an objective of your own')}"


def _masking(objective: Any) -> str:
    replaced, random = objective.mask_replace_prob, objective.random_replace_prob
    kept = max(0.0, 1 - replaced - random)
    unit = {"token": "", "whole_word": ", whole words together", "span": ", in spans"}[objective.mlm_masking]
    return (
        f"{_percent(objective, 'mlm_probability')} of the tokens are predicted{unit}; they are shown as the mask token "
        f"({100 * replaced:g} %), a random one ({100 * random:g} %) or as they are ({100 * kept:.3g} %)"
    )


def _noise(objective: Any) -> str:
    length = getattr(objective, "mean_noise_span_length", 0)
    return f"{_percent(objective, 'noise_density')} of the tokens are cut out, in spans of {length:g} on average"


def _percent(objective: Any, option: str) -> str:
    return f"{100 * getattr(objective, option, 0):g} %"


def untried(objective: Objective, config: TrainConfig) -> list[str]:
    """What only the model's weights could tell: whether it does what training will ask of it."""
    trials = []
    if isinstance(objective, PrefixLM):
        trials.append("whether the model reads a prefix in both directions")
    if config.packing:
        trials.append("whether it keeps samples that share a row apart (packing)")
    return trials


def percent(share: float) -> str:
    """0.125 as `12.5 %`."""
    return f"{100 * share:.1f} %"


def mask_words(config: TrainConfig, kind: str) -> str:
    """What carries loss, in the words of the configuration's keys. kind: format of the records."""
    if kind == "tokens":
        return "given with the tokens in the data; the settings of masks have no part in it"
    whole, spoken = kind == "text", kind in CONVERSATIONS
    said = f"what {' and '.join(config.train_roles)} says is learned" if spoken else "completions are learned"
    told = {
        "prompt": "documents are learned from end to end" if whole else f"prompt: {said}, the rest is masked",
        "none": "none: every token is learned",
        "completion": "completion: completions are masked; the rest is learned",
    }
    parts = [told[config.mask]]
    if spoken and config.train_turns == "last":
        parts.append("of a conversation only the last such turn")
    if config.keep_spans is not None:
        parts.append(f"what matches /{config.keep_spans}/ is learned all the same")
    if config.keep_field is not None:
        parts.append(f"what column {config.keep_field!r} says is learned all the same")
    for pattern, weight in (config.span_weights or {}).items():
        parts.append(f"what matches /{pattern}/ has weight {weight:g}")
    if not whole and config.mask != "completion":
        end = f"the token that ends a {'turn' if spoken else 'completion'}"
        parts.append(f"{end} is learned" if config.train_on_eot else f"{end} is not learned")
    return "; ".join(parts)
