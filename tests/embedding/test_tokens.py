"""Where new rows come from, table by table, and that nothing else of the model or tokenizer changes."""

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from embedding.small import WORDS, llama, tokenizer_of_words
from fastft.embedding import TrainableRows, add_tokens
from fastft.embedding.tokens import CHUNK, statistics

KNOWN = len(WORDS)
YES, NO, THINK = WORDS.index("yes"), WORDS.index("no"), WORDS.index("think")


def tables(model: Any) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("rows", [KNOWN, KNOWN + 1, KNOWN + 9], ids=["grows", "grows over some room", "has room"])
def test_each_table_from_its_own_rows(tied: bool, rows: int) -> None:
    model, tokenizer = llama(tied=tied, rows=rows), tokenizer_of_words()
    before = [table.clone() for table in tables(model)]
    sources = {
        "<a>": "mean", "<b>": "copy:-", "<c>": "text:end of think", "<d>": "zeros",
        "<e>": "mix:0.75*copy:yes+0.25*mean+-1*text:no end", "<f>": "mix:1*zeros",
    }  # fmt: skip
    ids = add_tokens(model, tokenizer, sources)
    assert ids == list(range(KNOWN, KNOWN + 6)) == tokenizer.convert_tokens_to_ids(list(sources))
    assert tokenizer("yes<c>no", add_special_tokens=False)["input_ids"] == [YES, ids[2], NO]
    assert tokenizer.decode([YES, ids[0]], skip_special_tokens=True) == "yes"
    assert (tables(model)[0] is tables(model)[1]) == (before[0] is before[1])
    for old, new in zip(before, tables(model), strict=True):
        assert len(new) == max(rows, KNOWN + 6) == model.config.vocab_size
        assert torch.equal(new[:KNOWN], old[:KNOWN])
        assert torch.equal(new[KNOWN + 6 :], old[KNOWN + 6 :])
        mean = old[:KNOWN].mean(0)
        phrase = old[[WORDS.index(word) for word in ("end", "of", "think")]].mean(0)
        mixed = 0.75 * old[YES] + 0.25 * mean - old[[NO, WORDS.index("end")]].mean(0)
        zeros = torch.zeros(16)
        torch.testing.assert_close(new[ids], torch.stack([mean, old[4], phrase, zeros, mixed, zeros]))
        assert torch.equal(new[ids[1]], old[4])
    if not tied:
        assert not torch.allclose(tables(model)[0][ids], tables(model)[1][ids])


def test_by_id_where_the_last_rows_are_padding() -> None:
    model, tokenizer = llama(tied=True, rows=24), tokenizer_of_words()
    before = tables(model)[0].clone()
    ids = add_tokens(model, tokenizer, {"<a>": "zeros"})
    changed = (tables(model)[0] != before).any(1).nonzero()[:, 0].tolist()
    assert changed == ids == [KNOWN]


def test_padding_of_a_grown_table_is_the_mean() -> None:
    model, tokenizer = llama(tied=False), tokenizer_of_words()
    before = [table.clone() for table in tables(model)]
    assert add_tokens(model, tokenizer, {"<a>": "copy:yes"}, pad_to_multiple_of=8) == [KNOWN]
    for old, new in zip(before, tables(model), strict=True):
        assert len(new) == 16
        torch.testing.assert_close(new[KNOWN + 1 :], old.mean(0).expand(2, -1))


def test_a_head_larger_than_the_input_is_not_cut() -> None:
    model, tokenizer = llama(tied=False), tokenizer_of_words()
    model.lm_head = nn.Linear(16, 20, bias=False)
    add_tokens(model, tokenizer, {"<a>": "mean"})
    assert [len(table) for table in tables(model)] == [20, 20]


@pytest.mark.parametrize("rows", [KNOWN, KNOWN + 9])
def test_the_heads_bias(rows: int) -> None:
    """BERT's decoder has one, and shares it with the module around it."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=rows, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = hf.BertForMaskedLM(config)
    bias = torch.randn(rows)
    model.cls.predictions.bias.data.copy_(bias)
    ids = add_tokens(model, tokenizer_of_words(), {"<a>": "mean", "<b>": "copy:yes"})
    found = model.get_output_embeddings().bias
    assert found is model.cls.predictions.bias
    assert torch.equal(found[:KNOWN], bias[:KNOWN])
    torch.testing.assert_close(found[ids], torch.stack([bias[:KNOWN].mean(), bias[YES]]))


def test_noise_has_the_deviation_of_the_rows_and_a_seed() -> None:
    def drawn(source: str, **options: Any) -> torch.Tensor:
        model = llama(tied=True)
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(torch.arange(16.0)).add_(5)
        before = tables(model)[0].clone()
        ids = add_tokens(model, tokenizer_of_words(), {f"<{n}>": source for n in range(200)}, **options)
        rows = tables(model)[0][ids]
        centre = before.mean(0) if source == "random" else 0.0
        deviation = before.std(0, correction=0)
        assert (rows[:, 0] == 5 if source == "random" else rows[:, 0] == 0).all()
        scale = 0.1 if source.startswith("mix") else 1.0
        torch.testing.assert_close((rows - centre).std(0)[1:] / deviation[1:] / scale, torch.ones(15), rtol=0.2, atol=0)
        assert ((rows - centre).mean(0)[1:].abs() < 0.3 * scale * deviation[1:]).all()
        return rows

    assert torch.equal(drawn("random"), drawn("random"))
    assert not torch.equal(drawn("random"), drawn("random", seed=1))
    drawn("noise")
    drawn("mix:.1*noise")


def test_statistics_over_many_chunks() -> None:
    values = torch.randn(2 * CHUNK + 7, 3, dtype=torch.bfloat16)
    mean, deviation = statistics(values, torch.arange(5, len(values)))
    torch.testing.assert_close(mean, values[5:].double().mean(0))
    torch.testing.assert_close(deviation, values[5:].double().std(0, correction=0))


def test_a_table_that_is_trained_stays_so_and_half_precision_stays_half() -> None:
    model = llama(tied=True, dtype=torch.bfloat16)
    model.requires_grad_(False)
    add_tokens(model, tokenizer_of_words(), {"<a>": "mean"})
    assert not tables(model)[0].requires_grad
    assert tables(model)[0].dtype == torch.bfloat16


WRONG = [
    ({}, "tokens is empty"),
    ({" ": "mean"}, "needs a visible character"),
    ({"yes": "mean"}, rf"'yes' is in the tokenizer already \(id {YES}\).*TrainableRows\(model, \[{YES}\]\)"),
    ({"<a>": "average"}, "source 'average' is unknown; expected one of"),
    ({"<a>": "copy:"}, "source 'copy:' is unknown"),
    ({"<a>": "mix:copy:yes"}, "source 'mix:copy:yes' is unknown"),
    ({"<a>": "mix:1*copy:yes+0.5*nought"}, "source 'nought' is unknown"),
    ({"<a>": "copy:maybe"}, "'<a>': the tokenizer has no tokens for 'maybe'"),
    ({"<a>": "copy:yes no"}, r"'yes no' is \['yes', 'no'\], not one token; 'text:yes no' averages them"),
    ({"<a>": "text:   "}, "the tokenizer has no tokens for '   '"),
    ({"<a>": "mean", "<b>": "text:yes maybe"}, "has no tokens for 'yes maybe', or not for all of it"),
]


@pytest.mark.parametrize(("tokens", "message"), WRONG, ids=[str(tokens) for tokens, _ in WRONG])
def test_what_is_wrong_is_said_before_anything_changes(tokens: dict[str, str], message: str) -> None:
    model, tokenizer = llama(tied=False), tokenizer_of_words()
    before = [table.clone() for table in tables(model)]
    with pytest.raises(ValueError, match=message):
        add_tokens(model, tokenizer, tokens)
    assert len(tokenizer) == KNOWN
    assert all(torch.equal(a, b) for a, b in zip(before, tables(model), strict=True))


def test_models_it_cannot_write() -> None:
    tokenizer = tokenizer_of_words()
    with pytest.raises(TypeError, match=r"model is a str; expected a transformers\.PreTrainedModel"):
        add_tokens("gpt2", tokenizer, {"<a>": "mean"})
    model = llama(tied=True)
    rows = TrainableRows(model, [4])
    with pytest.raises(ValueError, match="has TrainableRows already: call their merge"):
        add_tokens(model, tokenizer, {"<a>": "mean"})
    assert len(tokenizer) == KNOWN
    rows.merge()
    assert add_tokens(model, tokenizer, {"<a>": "mean"}) == [KNOWN]


def test_a_token_of_the_tokenizer_that_the_table_has_no_row_for() -> None:
    model, tokenizer = llama(tied=True), tokenizer_of_words()
    tokenizer.add_tokens(["<z>"], special_tokens=True)
    with pytest.raises(ValueError, match="token id 13 has no row in a table of 13: resize the model first"):
        add_tokens(model, tokenizer, {"<a>": "copy:<z>"})
    assert add_tokens(model, tokenizer, {"<a>": "mean"}) == [KNOWN + 1]
    assert len(tables(model)[0]) == KNOWN + 2
