import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fastft.data import Sample, collate

PAD = 9


def test_padding_is_on_the_right_and_labels_come_from_weights_alone():
    samples = [Sample([5, PAD, 6], [0.0, 1.0, 1.0]), Sample([PAD, 7, 8, 4, PAD], [0.0, 0.0, 1.0, 1.0, 1.0])]
    batch = collate(samples, PAD)
    assert batch["input_ids"].tolist() == [[5, 9, 6, 9, 9], [9, 7, 8, 4, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 9, 6, -100, -100], [-100, -100, 8, 4, 9]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_weights_other_than_zero_and_one_are_handed_on():
    batch = collate([Sample([1, 2, 3], [0.0, 0.5, 1.0]), Sample([4, 5], [0.0, 2.0])], PAD)
    assert batch["token_weight"].dtype == torch.float32
    assert batch["token_weight"].tolist() == [[0.0, 0.5, 1.0], [0.0, 2.0, 0.0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, 5, -100]]


@pytest.mark.parametrize(("multiple", "length"), [(1, 3), (2, 4), (8, 8)])
def test_the_length_is_rounded_up(multiple, length):
    assert collate([Sample([1, 2, 3], [0.0, 1.0, 1.0])], PAD, multiple)["labels"].shape == (1, length)


def test_a_hugging_face_model_takes_the_batch_as_it_is():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)).eval()
    samples = [Sample([1, 2, 3, 4], [0.0, 0.0, 1.0, 1.0]), Sample([5, 6], [0.0, 1.0])]
    together = model(**collate(samples, PAD)).loss
    alone = [model(**collate([sample], PAD)).loss * sum(sample.weights) for sample in samples]
    torch.testing.assert_close(together, sum(alone) / 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 0), ValueError, "samples: got none"),
        (([Sample([1], [0.0])], None), TypeError, "pad_token_id: got None"),
        (([Sample([1], [0.0])], 0, 0), ValueError, "pad_to_multiple_of: got 0"),
    ],
)
def test_what_cannot_be_a_batch_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        collate(*arguments)
