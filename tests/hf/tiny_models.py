"""Tiny random models of every kind of head, with a batch each. Heads are drawn large, so that scales, softcaps,
biases and label positions all show in the loss."""

from typing import Any

import torch
import transformers as hf
from torch import Tensor

from fastft.hf import LazyLogits

VOCAB, LENGTH = 67, 9
Batch = dict[str, Tensor]

SIZE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER = SIZE | {"intermediate_size": 24, "max_position_embeddings": 24}
BERT = ENCODER | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = ENCODER | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {
    "vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 24,
    "dropout": 0.0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip
BLOOM = {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.0}
OPT = SIZE | {"word_embed_proj_dim": 8, "ffn_dim": 24, "max_position_embeddings": 24, "dropout": 0.0}
MODERN = ENCODER | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CAP = {"final_logit_softcapping": 5.0}
UNTIED = {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}

# name: model class, configuration class, configuration
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (hf.BertForMaskedLM, hf.BertConfig, BERT),
    "roberta": (hf.RobertaForMaskedLM, hf.RobertaConfig, BERT),
    "distilbert": (hf.DistilBertForMaskedLM, hf.DistilBertConfig, DISTILBERT),
    "albert": (hf.AlbertForMaskedLM, hf.AlbertConfig, BERT | {"embedding_size": 8}),
    "electra": (hf.ElectraForMaskedLM, hf.ElectraConfig, BERT | {"embedding_size": 8}),
    "modernbert": (hf.ModernBertForMaskedLM, hf.ModernBertConfig, MODERN),
    "bert_pretraining": (hf.BertForPreTraining, hf.BertConfig, BERT),
    "gpt": (hf.OpenAIGPTLMHeadModel, hf.OpenAIGPTConfig, GPT),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, GPT),
    "bloom": (hf.BloomForCausalLM, hf.BloomConfig, BLOOM),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, LLAMA),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, LLAMA | {"tie_word_embeddings": True}),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, LLAMA | CAP),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, LLAMA | CAP),
    "cohere": (hf.CohereForCausalLM, hf.CohereConfig, LLAMA | {"logit_scale": 0.3}),
    "granite": (hf.GraniteForCausalLM, hf.GraniteConfig, LLAMA | {"logits_scaling": 3.0}),
    "opt": (hf.OPTForCausalLM, hf.OPTConfig, OPT),
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig, BART),
    "mbart": (hf.MBartForConditionalGeneration, hf.MBartConfig, BART),
    "marian": (hf.MarianMTModel, hf.MarianConfig, BART | {"decoder_vocab_size": VOCAB}),
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config, T5),
    "t5_untied": (hf.T5ForConditionalGeneration, hf.T5Config, T5 | UNTIED),
    "encoder_decoder": (
        hf.EncoderDecoderModel,
        hf.EncoderDecoderConfig.from_encoder_decoder_configs,
        {"encoder_config": hf.BertConfig(**BERT), "decoder_config": hf.BertConfig(**BERT)}
        | {"decoder_start_token_id": 1, "pad_token_id": 0},
    ),
}
SEQ2SEQ = ("bart", "mbart", "marian", "t5", "t5_untied", "encoder_decoder")


def model_and_batch(name: str) -> tuple[Any, Batch]:
    """The model in training mode (without dropout), and a batch in which most labels are -100."""
    torch.manual_seed(0)
    model_class, config_class, config = MODELS[name]
    model = model_class(config_class(**config)).train()
    with torch.no_grad():
        head = model.get_output_embeddings()
        for tensor in (head.weight, head.bias, getattr(model, "final_logits_bias", None)):
            if tensor is not None:
                tensor.normal_(std=0.7)
    return model, batch_for(name)


def batch_for(name: str, rows: int = 3) -> Batch:
    ids = torch.randint(5, VOCAB, (rows, LENGTH))
    labels = torch.where(torch.rand(rows, LENGTH) < 0.3, torch.randint(5, VOCAB, (rows, LENGTH)), -100)
    labels[0, :] = -100  # a row without any label
    labels[1, 3], labels[1, -1], labels[2, 0] = 7, 8, 9  # and both ends of one
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if name == "mbart":
        labels[0, 0] = 5  # its decoder inputs start from the last label
    if name == "bert_pretraining":
        batch["next_sentence_label"] = torch.arange(rows) % 2
    return batch


def run(model: Any, batch: dict[str, Tensor], **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
    model.zero_grad()
    output = model(**batch, **kwargs)
    output.loss.backward()
    names = [name.replace("module.", "") for name, _ in model.named_parameters()]
    grads = [p.grad for p in model.parameters()]
    return output, {n: g.clone() for n, g in zip(names, grads, strict=True) if g is not None}


def assert_same(want: tuple[Any, dict[str, Tensor]], got: tuple[Any, dict[str, Tensor]], rtol: float = 1e-5) -> None:
    """Equal losses and gradients, and `got` was fused."""
    assert_equal(want, got, rtol)
    assert is_fused(got[0])


def assert_equal(want: tuple[Any, dict[str, Tensor]], got: tuple[Any, dict[str, Tensor]], rtol: float = 1e-5) -> None:
    torch.testing.assert_close(got[0].loss, want[0].loss, rtol=rtol, atol=0)
    assert got[1].keys() == want[1].keys()
    largest = max(g.abs().max().item() for g in want[1].values())
    for name in want[1]:
        torch.testing.assert_close(got[1][name], want[1][name], rtol=rtol, atol=rtol / 10 * largest)


def is_fused(output: Any) -> bool:
    return type(output.logits) is LazyLogits and not output.logits.is_materialized
