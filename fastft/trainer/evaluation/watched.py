"""How well a model knows the tokens that one cares about: loss, rank and probability where they are due."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastft.embedding.tokens import token_id
from fastft.hf.lazy_logits import logit_rows

NUMBERS = ("nll", "rank", "probability", "emitted", "precision")  # that `Watched.result` may leave out
CHUNK_BYTES = 64 << 20  # of fp32 logits that are made at a time


def watched_ids(names: Sequence[str], tokenizer: Any) -> dict[str, int]:
    """The id of each token, given by the tokenizer's own name for it or as text.

    Raises:
        ValueError: a name that is not one token (the message says what it splits into) or that the tokenizer does not
            know.
    """
    known = tokenizer.get_vocab()
    hint = "watch one of these, or make it one: new_tokens"
    try:
        return {name: token_id(name, tokenizer, known, hint) for name in names}
    except ValueError as error:
        raise ValueError(f"watch_tokens: {error}") from error


class Watched:
    """Sums over the labels of some batches, for chosen tokens.

    A watched token is due where it is the label and has a weight. It is emitted where it is the argmax, among the
    labels with a weight. Weights beyond that do not count: every label counts alike.

    Args:
        tokens: id of each token, by the name that `result` gives it.
    """

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self.tokens = dict(tokens)
        self._sums = torch.zeros(len(self.tokens), 6, dtype=torch.float64)

    @torch.no_grad()
    def see(self, logits: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Count one output of one batch.

        The logits of labels with a weight are read, in chunks; of a patched model no others are made.

        Args:
            logits: (..., V), as the model gives them, lazy or not.
            labels: (...) int64.
            weights: (...) float; 0 where a label does not count.
        """
        labels, width = labels.reshape(-1), logits.shape[-1]
        places = ((weights.reshape(-1) > 0) & (labels >= 0)).nonzero()[:, 0]  # (M,)
        watched = torch.tensor(list(self.tokens.values()), device=labels.device)  # (K,)
        flat = logits.reshape(-1, width)
        size = max(1, CHUNK_BYTES // (4 * width))
        for start in range(0, len(places), size):
            some = places[start : start + size]
            rows, targets = logit_rows(flat, some), labels[some]  # (m, V), (m,)
            due = targets[:, None] == watched  # (m, K)
            emitted = rows.argmax(-1)[:, None] == watched
            wanted = due.any(-1).nonzero()[:, 0]  # (d,)
            z = rows[wanted].float()
            own = z.gather(1, targets[wanted, None])  # (d, 1)
            nll = z.logsumexp(-1, keepdim=True) - own
            rank = 1 + (z > own).sum(-1, keepdim=True)
            facts = torch.cat([torch.ones_like(nll), nll, rank, (-nll).exp()], -1).double()  # (d, 4)
            counts = torch.stack([(due & emitted).sum(0), emitted.sum(0)], -1).double()  # (K, 2)
            self._sums += torch.cat([due[wanted].double().t() @ facts, counts], -1).cpu()

    def sums(self) -> Tensor:
        """(K, 6) float64 on the CPU, what `result` is made of: due, and sums of nll, rank and probability where due;
        emitted where due; emitted. Those of other processes may be added to it, in place."""
        return self._sums

    def result(self) -> dict[str, dict[str, float]]:
        """For each token, by name:

        due:          how often it was due; without that, what follows up to `emitted` is left out
        nll:          mean of -log p(token), nats
        rank:         mean of its place in the order of probability, 1 being the most probable
        probability:  mean of p(token)
        emitted:      share of the places where it is due in which it is the argmax
        precision:    share of the places where it is the argmax in which it is due; left out if it never is
        """
        found = {}
        for name, (due, nll, rank, probability, right, emitted) in zip(self.tokens, self._sums.tolist(), strict=True):
            numbers = {"due": due}
            if due:
                numbers |= {"nll": nll / due, "rank": rank / due, "probability": probability / due}
                numbers["emitted"] = right / due
            if emitted:
                numbers["precision"] = right / emitted
            found[name] = numbers
        return found
