from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fastft import patch
from fastft.data import Batch, Sample
from fastft.data.batch import lay_out, shifted
from fastft.trainer.gradient import totals, window_gradient

CPU = torch.device("cpu")
VOCAB = 37


def tiny(dtype: torch.dtype, patched: bool) -> Any:
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=False, **shape)).to(dtype)
    return patch(model) if patched else model


MODELS = {
    (dtype, patched): tiny(dtype, patched) for dtype in (torch.float64, torch.float32) for patched in (True, False)
}


def reference_gradient(samples: list[Sample]) -> list[Tensor]:
    """sum w nll / sum w in fp64, sample by sample, without padding, masks or losses of ours."""
    model = MODELS[torch.float64, False]
    model.zero_grad()
    total = sum(sum(sample.weights[1:]) for sample in samples)
    for sample in samples:
        ids = torch.tensor([sample.input_ids])
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)  # (T - 1, V)
        nll = -scores[torch.arange(len(scores)), ids[0, 1:]]
        (nll @ torch.tensor(sample.weights[1:], dtype=torch.float64) / total).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def samples_of(sizes: list[int], tiers: list[float]) -> list[Sample]:
    generator = torch.Generator().manual_seed(sum(sizes))
    samples = []
    for place, size in enumerate(sizes):
        ids = torch.randint(VOCAB, (size,), generator=generator).tolist()
        samples.append(Sample(ids, [tiers[(place + i) % len(tiers)] for i in range(size)]))
    return samples


def batch_of(samples: list[Sample]) -> Batch:
    return lay_out([[shifted(s.input_ids, s.weights)] for s in samples], 0, causal=True)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(2, 12), min_size=1, max_size=7),
    tiers=st.sampled_from([[1.0], [0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.3, 1.0, 2.5], [0.02, 0.0]]),
    cuts=st.lists(st.integers(0, 7), max_size=4),
    patched=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_any_cut_into_micro_batches_gives_the_gradient_of_the_whole(
    sizes: list[int], tiers: list[float], cuts: list[int], patched: bool, dtype: torch.dtype
) -> None:
    samples = samples_of([*sizes, 6], tiers)
    edges = sorted({0, len(samples), *(cut for cut in cuts if cut < len(samples))})
    window = [samples[a:b] for a, b in pairwise(edges)]
    model = MODELS[dtype, patched]
    model.zero_grad()
    shares, parts = window_gradient(model, [batch_of(part) for part in window], CPU, nullcontext())
    assert shares.shape == (len(window),)
    torch.testing.assert_close(shares.sum(), parts["logits"])
    expected = reference_gradient(samples)
    scale = max(gradient.abs().max().item() for gradient in expected)
    tolerance = scale * (1e-6 if dtype == torch.float64 else 2e-5)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad.double() - gradient).abs().max() <= tolerance


def test_the_denominator_is_of_the_whole_window() -> None:
    window = [batch_of([Sample([5, 6, 7], [1.0, 0.25, 0.5])]), batch_of([Sample([8, 9], [1.0, 2.0])])]
    assert totals(window) == {"logits": 2.75}


def test_a_scaled_window_has_a_scaled_gradient_and_its_own_loss() -> None:
    model, window = MODELS[torch.float64, False], [batch_of(samples_of([5, 7], [1.0]))]
    found = []
    for scale in (1.0, 0.25):
        model.zero_grad()
        shares, _ = window_gradient(model, window, CPU, nullcontext(), scale)
        found.append((shares, [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for whole, part in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(0.25 * whole, part)


def test_a_window_without_labels_is_a_zero() -> None:
    model = MODELS[torch.float32, True]
    model.zero_grad()
    shares, _ = window_gradient(model, [batch_of([Sample([5, 6, 7], [0.0, 0.0, 0.0])])], CPU, nullcontext())
    assert shares.tolist() == [0.0]
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_a_sequence_as_long_as_the_vocabulary_is_not_taken_for_classes() -> None:
    """(B, V) and (B, T) look alike to torch's (N, C, d) form of cross-entropy where T = V."""
    samples = samples_of([VOCAB, VOCAB], [1.0])
    model = MODELS[torch.float64, False]
    expected = reference_gradient(samples)
    model.zero_grad()
    window_gradient(model, [batch_of(samples)], CPU, nullcontext())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("patched", [True, False])
def test_bf16_autocast_stays_close_and_leaves_gradients_in_fp32(patched: bool) -> None:
    samples = samples_of([9, 4, 11], [0.0, 1.0])
    model = MODELS[torch.float32, patched]
    model.zero_grad()
    batches = [batch_of(samples[:1]), batch_of(samples[1:])]
    window_gradient(model, batches, CPU, torch.autocast("cpu", torch.bfloat16))
    expected = torch.cat([gradient.flatten() for gradient in reference_gradient(samples)])
    got = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert got.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(got.double(), expected, dim=0) > 0.999
