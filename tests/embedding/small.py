"""A tokenizer of words, and Llamas of its size or larger."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["[UNK]", "<s>", "</s>", "<pad>", "-", "yes", "no", "think", "end", "of", "red", "green", "blue"]
LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2}


def tokenizer_of_words() -> Any:
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def llama(*, tied: bool, rows: int = len(WORDS), dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
        pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.5)
    return model.to(dtype)


def batch(rows: int = 3, length: int = 8, vocabulary: int = len(WORDS), seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocabulary, (rows, length), generator=generator)
    labels = torch.where(torch.rand(rows, length, generator=generator) < 0.5, ids, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
