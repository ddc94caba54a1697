from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from fastft import patch
from fastft.data import Corpus, Stats
from fastft.hf.lazy_logits import LazyLogits, logit_rows
from fastft.trainer.evaluation import watched as module
from fastft.trainer.evaluation.evaluate import evaluate
from fastft.trainer.evaluation.watched import Watched, watched_ids

from .conftest import MakeTrainer

CPU = torch.device("cpu")
TOKENS = {"a": 3, "b": 7, "never": 9}


def drawn(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (4, 30, 11) of which some are right, labels, and weights of which some are 0."""
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(4, 30, 11), torch.randint(8, (4, 30))
    weights = torch.randint(3, (4, 30)) * 0.5
    logits[:2].scatter_add_(-1, labels[:2, :, None], torch.full((2, 30, 1), 4.0))
    labels[2, :3] = -100
    return logits.to(dtype), labels, weights


def by_hand(logits: Tensor, labels: Tensor, weights: Tensor) -> dict[str, dict[str, float]]:
    """Place after place."""
    found = {}
    for name, token in TOKENS.items():
        nll, rank, p, right, emitted = [], [], [], 0, 0
        for z, label, weight in zip(logits.double().flatten(0, 1), labels.flatten(), weights.flatten(), strict=True):
            if weight == 0 or label == -100:
                continue
            order = z.argsort(descending=True).tolist()
            emitted += order[0] == token
            if label == token:
                p.append(z.softmax(-1)[token].item())
                nll.append(-z.log_softmax(-1)[token].item())
                rank.append(order.index(token) + 1)
                right += order[0] == token
        due = len(p)
        numbers: dict[str, float] = {"due": due}
        if due:
            means = {"nll": nll, "rank": rank, "probability": p}
            numbers |= {key: sum(values) / due for key, values in means.items()} | {"emitted": right / due}
        if emitted:
            numbers["precision"] = right / emitted
        found[name] = numbers
    return found


@pytest.mark.parametrize("chunk", [1, 44 * 3, 1 << 20])
def test_agrees_with_one_place_after_another(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    logits, labels, weights = drawn()
    watched = Watched(TOKENS)
    for part in (slice(0, 1), slice(1, 4)):
        watched.see(logits[part], labels[part], weights[part])
    expected = by_hand(logits, labels, weights)
    assert expected["a"]["due"] > 1
    assert 0 < expected["a"]["precision"] < 1
    assert "nll" not in expected["never"]
    found = watched.result()
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(numbers, rel=1e-5), name


def test_sums_of_processes_add_up() -> None:
    logits, labels, weights = drawn()
    whole, parts = Watched(TOKENS), [Watched(TOKENS) for _ in range(2)]
    whole.see(logits, labels, weights)
    for rank, part in enumerate(parts):
        part.see(logits[rank::2], labels[rank::2], weights[rank::2])
    parts[0].sums().add_(parts[1].sums())
    assert parts[0].result() == {name: pytest.approx(numbers) for name, numbers in whole.result().items()}


def test_nothing_to_learn_is_nothing_seen() -> None:
    logits, labels, weights = drawn()
    watched = Watched(TOKENS)
    watched.see(logits, labels, torch.zeros_like(weights))
    assert watched.result() == {name: {"due": 0.0} for name in TOKENS}


def gemma() -> Any:
    """Its logits are capped by a tanh."""
    torch.manual_seed(1)
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.5,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def llama(model_dir: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir).eval()


@pytest.mark.parametrize("make", [llama, lambda _: gemma()], ids=["llama", "gemma2"])
@pytest.mark.parametrize("bf16", [False, True])
def test_rows_of_lazy_logits_are_the_models_own(make: Callable[[str], Any], bf16: bool, model_dir: str) -> None:
    model = make(model_dir)
    ids, index = torch.arange(14).reshape(2, 7), torch.tensor([1, 5, 5, 12])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        own = model(input_ids=ids).logits
        lazy = patch(model)(input_ids=ids).logits
    assert isinstance(lazy, LazyLogits)
    with torch.no_grad():
        rows = logit_rows(lazy.reshape(14, -1), index)
    assert type(rows) is Tensor
    assert not lazy.is_materialized
    tolerance = 0.03 if bf16 else 1e-5
    torch.testing.assert_close(rows.float(), own.flatten(0, 1)[index].float(), rtol=tolerance, atol=tolerance)
    assert lazy.sum().isfinite()  # reads them all
    with torch.no_grad():
        torch.testing.assert_close(logit_rows(lazy.reshape(14, -1), index), lazy.reshape(14, -1)[index])


def test_a_patched_model_makes_logits_of_labels_only(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(eval_fraction=0.3)
    task = trainer.tasks[0]
    assert task.eval is not None
    watched, read = Watched(watched_ids([" is"], trainer.tokenizer)), []
    monkeypatch.setattr(LazyLogits, "materialize", lambda self: read.append(self.shape))
    args = (task.objective, task.eval, 3, CPU, nullcontext())
    found, plain = evaluate(trainer.model, *args, watched=watched), evaluate(trainer.model, *args)
    assert found == plain
    assert not read
    due = sum(
        token == watched.tokens[" is"] and weight > 0
        for sample in task.eval.samples
        for token, weight in zip(sample.input_ids, sample.weights, strict=True)
    )
    assert watched.result()[" is"]["due"] == due > 0


@pytest.mark.parametrize("patch", [True, False])
def test_an_evaluation_tells_the_tokens_of_every_batch(make_trainer: MakeTrainer, patch: bool) -> None:
    """The one token of a sample of its own has the sample's loss."""
    trainer = make_trainer(eval_fraction=0.3, patch=patch)
    task, name = trainer.tasks[0], " is"
    token = watched_ids([name], trainer.tokenizer)[name]
    assert task.eval is not None
    samples = [type(s)(s.input_ids, [float(i == token) for i in s.input_ids]) for s in task.eval.samples]
    corpus = Corpus(type(task.eval.samples).of(samples), Stats(), [])
    watched = Watched({name: token})
    found = evaluate(trainer.model, task.objective, corpus, 2, CPU, nullcontext(), watched=watched)
    assert found is not None
    numbers = watched.result()[name]
    assert numbers["nll"] == pytest.approx(found.eval_loss, rel=1e-5)
    assert 1 <= numbers["rank"] <= len(trainer.tokenizer)
    assert 0 < numbers["probability"] < 1


def test_ids_of_text_and_of_pieces(model_dir: str, t5_dir: str, bert_dir: str) -> None:
    bpe = AutoTokenizer.from_pretrained(model_dir)
    found = watched_ids([" is", "Ġis", "<eos>"], bpe)
    assert found[" is"] == found["Ġis"] == bpe("is is")["input_ids"][-1]
    assert found["<eos>"] == bpe.eos_token_id
    bert = AutoTokenizer.from_pretrained(bert_dir)
    assert watched_ids(["sky", "[UNK]"], bert) == {"sky": bert.get_vocab()["sky"], "[UNK]": 1}
    assert watched_ids(["x"], AutoTokenizer.from_pretrained(t5_dir)) == {"x": ord("x") + 3}


def test_refuses_what_is_no_token(model_dir: str, bert_dir: str) -> None:
    bpe, bert = AutoTokenizer.from_pretrained(model_dir), AutoTokenizer.from_pretrained(bert_dir)
    with pytest.raises(ValueError, match=r"'xyz' is \['x', 'y', 'z'\], not one token; watch one .* new_tokens"):
        watched_ids([" is", "xyz"], bpe)
    for name in ("zebra", "the zebra"):
        with pytest.raises(ValueError, match=f"watch_tokens: the tokenizer has no tokens for '{name}'"):
            watched_ids([name], bert)
    with pytest.raises(ValueError, match="watch_tokens: the tokenizer has no tokens for ''"):
        watched_ids([""], bpe)
