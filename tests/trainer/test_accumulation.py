"""Eight samples in one batch, or one by one: the same loss and the same gradient, for every kind of model.

transformers' Trainer is off by the number of batches for five of these six (BERT, RoBERTa, DistilBERT, T5, BART), as
their heads do not look at `num_items_in_batch`.
"""

import hashlib
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fastft import patch
from fastft.data.batch import Batch, Piece, Target, lay_out, shifted
from fastft.trainer.gradient import window_gradient

VOCAB, ROWS = 61, 8
WIDE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "BERT": (BertForMaskedLM, BertConfig(**WIDE, intermediate_size=24)),
    "RoBERTa": (RobertaForMaskedLM, RobertaConfig(**WIDE, intermediate_size=24, max_position_embeddings=40)),
    "DistilBERT": (
        DistilBertForMaskedLM,
        DistilBertConfig(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    ),
    "GPT-2": (GPT2LMHeadModel, GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2)),
    "T5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0),
    ),
    "BART": (
        BartForConditionalGeneration,
        BartConfig(
            vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        ),
    ),
}  # fmt: skip


def samples(generator: torch.Generator) -> list[list[int]]:
    """Eight texts of very different lengths, as accumulation goes wrong where batches are unlike."""
    return [torch.randint(4, VOCAB, (3 + 4 * n,), generator=generator).tolist() for n in range(ROWS)]


def batch(kind: str, texts: list[list[int]]) -> Batch:
    if kind == "GPT-2":
        return lay_out([[shifted(ids, [1.0] * len(ids))] for ids in texts], 0, causal=True)
    if kind in ("T5", "BART"):
        encoder = lay_out([[Piece(ids, [-100] * len(ids), [0.0] * len(ids))] for ids in texts], 0, causal=False)
        longest = max(map(len, texts))
        labels = torch.tensor([[*ids[1:], *[-100] * (longest - len(ids) + 1)] for ids in texts])
        decoder = torch.tensor([[0, *ids[1:], *[0] * (longest - len(ids))] for ids in texts])
        return Batch(
            {**encoder.inputs, "decoder_input_ids": decoder}, (Target("logits", labels, (labels >= 0).float()),), 0
        )
    pieces = []
    for ids in texts:  # every third token is predicted
        learned = [float((place + ids[0]) % 3 == 0 or place == 1) for place in range(len(ids))]
        labels = [token if weight else -100 for token, weight in zip(ids, learned, strict=True)]
        pieces.append([Piece(ids, labels, learned)])
    return lay_out(pieces, 0, causal=False)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_eight_by_one_is_one_by_eight(kind: str, patched: bool) -> None:
    make, config = MODELS[kind]
    seed = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:4], "big")
    torch.manual_seed(seed)
    model = make(config).double().eval()
    if patched:
        patch(model)
    texts = samples(torch.Generator().manual_seed(seed))
    found = []
    for cut in ([texts], [[ids] for ids in texts], [texts[:3], texts[3:4], texts[4:]]):
        model.zero_grad()
        shares, _ = window_gradient(model, [batch(kind, part) for part in cut], torch.device("cpu"), nullcontext())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        found.append(
            (shares.sum(), norm, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        )
    for loss, norm, gradient in found[1:]:
        assert f"{float(loss / found[0][0]):.3f} {float(norm / found[0][1]):.3f}" == "1.000 1.000"
        torch.testing.assert_close(gradient, found[0][2], rtol=1e-6, atol=1e-9)
