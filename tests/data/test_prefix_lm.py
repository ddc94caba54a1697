from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn.functional import cross_entropy
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fastft.data import Draw, Sample, Samples, make_objective
from fastft.data.attention import forward
from fastft.data.formats import PromptCompletion, Text
from fastft.data.masking import WeightedSpan
from fastft.data.objectives import prefix_lm
from fastft.data.objectives.prefix_lm import prefilled
from fastft.data.templates import Renderer

from .built import build

V = 400
SIZES = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, sliding_window=16, sliding_window_pattern=2)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=16)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=32)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=1)),
    "neo": lambda: GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=V, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
        )
    ),
}


def make_model(name, implementation="sdpa"):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.set_attn_implementation(implementation)
    return model.eval()


def corpus(tokenizer, *records, max_length=1024, **options):
    renderer = Renderer(tokenizer)
    rendered = [(renderer.render(record, "f:1"), "f:1") for record in records]
    objective = make_objective("prefix_lm", tokenizer, {"max_length": max_length})
    made = build(rendered, len(rendered), objective, lambda r: [WeightedSpan(*t, 1.0) for t in r.targets], "error")
    return objective, made.samples


def mean_loss(model, batch):
    (target,) = batch.targets
    nll = cross_entropy(forward(model, batch).logits.flatten(0, 1), target.labels.flatten(), reduction="none")
    return (nll * target.weights.flatten()).sum() / target.weights.sum()


RECORDS = [PromptCompletion("the user of the model", " reads the words"), PromptCompletion("the model", " writes")]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3"])
def test_the_loss_is_the_models_own_under_a_mask_made_by_hand(tokenizer, name, implementation):
    model = make_model(name, implementation)
    objective, samples = corpus(tokenizer, *RECORDS)
    alone = [mean_loss(model, objective.batch(samples, [[index]], Draw(0, 0))) for index in (0, 1)]
    for sample, loss in zip(samples, alone, strict=True):
        ids, prefix = torch.tensor([sample.input_ids]), sample.boundary
        length = ids.shape[1]
        seen = torch.tensor([[[[j <= i or max(i, j) < prefix for j in range(length)] for i in range(length)]]])
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        labels = ids.clone()
        labels[:, :prefix] = -100
        torch.testing.assert_close(loss, model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss)
        causal = model(input_ids=ids, labels=labels).loss
        assert abs((causal - loss).item()) > 1e-6  # the prefix matters
    # the same, padded and in one row
    weights = torch.tensor([sum(sample.weights) for sample in samples])
    together = (torch.stack(alone) * weights).sum() / weights.sum()
    for rows in ([[0], [1]], [[0, 1]], [[1, 0]]):
        torch.testing.assert_close(mean_loss(model, objective.batch(samples, rows, Draw(0, 0), 8)), together)


def test_the_prefix_ends_before_the_first_token_learned(tokenizer):
    objective, samples = corpus(tokenizer, *RECORDS)
    assert [sample.boundary for sample in samples] == [sample.weights.index(1.0) for sample in samples]
    batch = objective.batch(samples, [[0]], Draw(0, 0))
    (target,), boundary = batch.targets, samples[0].boundary
    ids = samples[0].input_ids
    assert target.labels[0].tolist() == [-100] * (boundary - 1) + ids[boundary:] + [-100]
    mask = batch.inputs["attention_mask"][0, 0]
    assert mask[:boundary, :boundary].all()
    assert not mask[:boundary, boundary:].any()
    assert mask[boundary:].equal(torch.ones_like(mask).tril()[boundary:])


@given(st.integers(0, 5), st.integers(0, 9), st.integers(0, 3))
def test_the_prefix_of_a_document_is_drawn(tokenizer, seed, epoch, index):
    objective, samples = corpus(tokenizer, *(Text("the words of the user " * n) for n in (1, 2, 3, 4)))
    sample = samples[index]
    batch = objective.batch(samples, [[index]], Draw(seed, epoch))
    length = len(sample.input_ids)
    prefix = int(batch.inputs["attention_mask"][0, 0, 0].sum())
    assert 1 <= prefix <= length - 1
    assert batch.targets[0].labels[0].tolist() == [-100] * (prefix - 1) + sample.input_ids[prefix:] + [-100]
    again = objective.batch(samples, [[(index + 1) % 4], [index]], Draw(seed, epoch))
    assert int(again.inputs["attention_mask"][1, 0, 0].sum()) == prefix


def test_every_prefix_of_a_document_is_as_likely_and_leaves_something_to_learn(tokenizer):
    objective = make_objective("prefix_lm", tokenizer, {})
    samples = Samples.of([Sample([5] * 6, [0.0, 1.0, 0.0, 1.0, 0.0, 0.0])])
    drawn = Counter()
    for epoch in range(3000):
        batch = objective.batch(samples, [[0]], Draw(0, epoch))
        assert batch.targets[0].total >= 1
        drawn[int(batch.inputs["attention_mask"][0, 0, 0].sum())] += 1
    assert set(drawn) == {1, 2, 3}
    assert all(abs(count - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for count in drawn.values())


def test_long_documents_are_blocks_and_long_records_are_cut(tokenizer):
    _, samples = corpus(tokenizer, Text("the words of the user " * 9), max_length=8)
    assert len(samples) > 3
    assert all(sample.boundary == 0 for sample in samples)
    _, samples = corpus(tokenizer, PromptCompletion("the", " words of the user" * 9), max_length=8)
    assert (len(samples), len(samples[0].input_ids), samples[0].boundary) == (1, 8, 1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "gemma3", "mistral"])
def test_models_that_heed_the_mask_are_accepted_and_left_as_they_were(tokenizer, name, implementation):
    model = make_model(name, implementation)
    model.train()
    quiet = next(module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    quiet.eval()
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    make_objective("prefix_lm", tokenizer, {"max_length": 16}).prepare(model)
    assert model.training
    assert not quiet.training
    assert torch.get_rng_state().equal(before)
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gemma3", "sliding windows of 16 tokens; max_length, now 17, can be 16"),
        ("mistral", "sliding windows of 16 tokens"),
        ("mamba", "layers of linear_attention, which read from left to right only"),
        ("neo", "does not let the first token of a prefix see the last one"),
        ("opt", "takes no mask of a prefix"),
        ("bloom", "takes no mask of a prefix"),
    ],
)
def test_models_that_cannot_do_it_are_refused(tokenizer, name, why):
    model = make_model(name, "eager")
    with pytest.raises(ValueError, match=rf"prefix_lm cannot train {type(model).__name__}: it .*{why}"):
        make_objective("prefix_lm", tokenizer, {"max_length": 17}).prepare(model)


def test_a_model_that_reads_ahead_or_takes_no_mask_is_refused(tokenizer, monkeypatch):
    objective = make_objective("prefix_lm", tokenizer, {})
    model = make_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes no mask of who sees whom; 'sdpa' or 'eager'"):
        objective.prepare(model)

    def sees_all(model, batch):
        everything = torch.ones_like(batch.inputs["attention_mask"])
        return model(input_ids=batch.inputs["input_ids"], attention_mask=everything, use_cache=False)

    monkeypatch.setattr(prefix_lm, "forward", sees_all)
    with pytest.raises(ValueError, match="lets tokens see what follows the prefix"):
        objective.prepare(make_model("llama"))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_generation_reads_the_prompt_as_training_does(tokenizer, name, implementation):
    model = make_model(name, implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that what a token sees decides what comes next
    ids, tokens = list(range(5, 13)), 4
    objective = make_objective("prefix_lm", tokenizer, {})
    options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": V, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        written = model.generate(**prefilled(model, torch.tensor([ids])), **options)
        causal = model.generate(torch.tensor([ids]), **options)
        whole = written.sequences[0].tolist()
        sample = Sample(whole, [0.0] * len(ids) + [1.0] * tokens, len(ids))
        logits = forward(model, objective.batch(Samples.of([sample]), [[0]], Draw(0, 0))).logits
    assert whole[: len(ids)] == ids
    torch.testing.assert_close(torch.cat(written.logits), logits[0, len(ids) - 1 : -1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(causal.logits[0], written.logits[0], atol=1e-2)


def test_a_prompt_of_one_token_can_be_completed():
    model = make_model("llama")
    with torch.no_grad():
        options = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": V, "pad_token_id": 0}
        written = model.generate(**prefilled(model, torch.tensor([[5]])), **options)
        assert written.equal(model.generate(torch.tensor([[5]]), **options))
