import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    LEDConfig,
    LEDForConditionalGeneration,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fastft.data.positions import first_position, written_positions

BERT = {
    "vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
BART = {
    "vocab_size": 50, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


def roberta():
    return RobertaForCausalLM(
        RobertaConfig(**BERT, max_position_embeddings=42, is_decoder=True, add_cross_attention=True)
    )


def in_two_parts():
    return EncoderDecoderModel(encoder=BertModel(BertConfig(**BERT, max_position_embeddings=64)), decoder=roberta())


@pytest.mark.parametrize(
    ("make", "positions"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=33)), 33),
        (roberta, 40),  # the first two of its table are never used
        (in_two_parts, 40),  # the encoder's 64 are not written at
        (lambda: BartForConditionalGeneration(BartConfig(**BART, max_position_embeddings=41)), 41),
        (lambda: BartForCausalLM(BartConfig(**BART, max_position_embeddings=41)), 41),
        (
            lambda: LEDForConditionalGeneration(
                LEDConfig(**BART, max_decoder_position_embeddings=43, attention_window=[16])
            ),
            43,
        ),
        (lambda: T5ForConditionalGeneration(T5Config(**T5, n_positions=512)), None),  # relative, whatever that says
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=8, n_layer=1, n_head=2)), None),
    ],
)
def test_positions_are_those_that_a_model_can_write_at(make, positions):
    with torch.device("meta"):
        model = make()
    assert written_positions(model) == positions


def test_texts_begin_behind_the_padding_index_where_there_is_one():
    with torch.device("meta"):
        assert first_position(roberta()) == 2
        assert first_position(BertModel(BertConfig(**BERT))) == 0
        assert first_position(BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=8, n_layer=1, n_head=2))) == 0
