import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fastft.data.batch import Piece, lay_out, sees, shifted

PAD = 9


def rows(*pieces):
    return [[piece] for piece in pieces]


def test_padding_is_on_the_right_and_labels_come_from_weights_alone():
    batch = lay_out(
        rows(shifted([5, PAD, 6], [0.0, 1.0, 1.0]), shifted([PAD, 7, 8, 4, PAD], [0.0, 0.0, 1.0, 1.0, 1.0])),
        PAD,
        causal=True,
    )
    (target,) = batch.targets
    assert batch.inputs["input_ids"].tolist() == [[5, 9, 6, 9, 9], [9, 7, 8, 4, 9]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert target.labels.tolist() == [[9, 6, -100, -100, -100], [-100, 8, 4, 9, -100]]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert (batch.tokens, target.count, target.total) == (8, 5, 5.0)


def test_weights_are_those_of_the_labels():
    (target,) = lay_out(
        rows(shifted([1, 2, 3], [0.7, 0.5, 1.0]), shifted([4, 5], [0.0, 2.0])), PAD, causal=True
    ).targets
    assert target.weights.tolist() == [[0.5, 1.0, 0.0], [2.0, 0.0, 0.0]]
    assert target.labels.tolist() == [[2, 3, -100], [5, -100, -100]]
    assert target.total == 3.5


@pytest.mark.parametrize(("multiple", "length"), [(1, 3), (2, 4), (8, 8)])
def test_the_length_is_rounded_up(multiple, length):
    batch = lay_out(rows(shifted([1, 2, 3], [0.0, 1.0, 1.0])), PAD, causal=True, multiple=multiple)
    assert batch.targets[0].labels.shape == batch.inputs["input_ids"].shape == (1, length)


def test_pieces_of_a_row_do_not_predict_each_other():
    batch = lay_out([[shifted([1, 2], [0, 1.0]), shifted([3, 4, 5], [0, 1.0, 1.0])]], PAD, causal=True, multiple=8)
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2]]
    assert batch.targets[0].labels.tolist() == [[2, -100, 4, 5, -100, -100, -100, -100]]
    assert "attention_mask" not in batch.inputs


def test_what_a_position_sees():
    pieces = np.array([[0, 0, 0, 1, 1, -1]])
    prefixed = np.array([[True, True, False, False, False, False]])
    both = np.zeros((6, 6), bool)
    both[:3, :3] = both[3:5, 3:5] = both[5, 5] = True
    assert (sees(pieces, prefixed, causal=False)[0] == both).all()
    causal = np.tril(both)
    causal[0, 1] = True  # of the prefix
    assert (sees(pieces, prefixed, causal=True)[0] == causal).all()


def test_token_types_reach_the_model_only_where_there_are_any():
    piece = Piece(np.array([1, 2]), np.array([-100, 2]), np.array([0, 1.0]), token_types=np.array([0, 1]))
    assert lay_out(rows(piece), PAD, causal=False).inputs["token_type_ids"].tolist() == [[0, 1]]


def test_a_hugging_face_model_takes_the_inputs_as_they_are():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)).eval()
    batch = lay_out(rows(shifted([1, 2, 3, 4], [0, 0, 1.0, 1.0]), shifted([5, 6], [0, 1.0])), PAD, causal=True)
    logits = model(**batch.inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets[0].labels.flatten())
    ids = batch.inputs["input_ids"]
    labels = torch.tensor([[-100, -100, 3, 4], [-100, 6, -100, -100]])
    torch.testing.assert_close(loss, model(ids, attention_mask=batch.inputs["attention_mask"], labels=labels).loss)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 0), ValueError, "samples: got none"),
        ((rows(shifted([1], [0.0])), None), TypeError, "pad_token_id: got None"),
        ((rows(shifted([1], [0.0])), 0, 0), ValueError, "multiple: got 0"),
    ],
)
def test_what_cannot_be_a_batch_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        lay_out(*arguments[:2], causal=True, **dict(zip(["multiple"], arguments[2:], strict=False)))
