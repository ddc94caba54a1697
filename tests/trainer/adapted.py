"""Small models of every kind with what a run puts onto them, learning for a moment without the trainer's loop."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fastft.hf.pretrained import load_model, load_tokenizer
from fastft.trainer import TrainConfig
from fastft.trainer.adapt import adapt
from fastft.trainer.given import given_tasks, model_class
from fastft.trainer.saving.checkpoint import save

NEW = {"<think>": "text:the sky", "<end>": "noise"}
LORA = {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.0}
OBJECTIVES = {"bert": "mlm", "t5": "seq2seq"}
IGNORED = (  # of PEFT and transformers 5.23
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning",
    "ignore:fan_in_fan_out is set to False:UserWarning",
    "ignore:Version v4.12.0:FutureWarning",
)


def save_untied(folder: Path, tokenizer_of: str) -> str:
    """A Llama whose head is its own, with more rows than tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(3)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1, num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None,
        eos_token_id=0, pad_token_id=0, tie_word_embeddings=False, **size,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_gpt2(folder: Path, tokenizer_of: str) -> str:
    """Tied, with layers that PEFT knows as Conv1D, and dropout."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(4)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def config_for(kind: str, folder: str, output_dir: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        model=folder, train_data="colours.jsonl", objective=OBJECTIVES.get(kind, "clm"), output_dir=str(output_dir),
        **changes,
    )  # fmt: skip


def fresh(config: TrainConfig, state: int = 0) -> tuple[Any, Any, Any]:
    """Model, tokenizer and trainable rows, adapted and not trained; torch's generator was anywhere before."""
    kind, code = model_class(given_tasks(config)), config.trust_remote_code
    tokenizer = load_tokenizer(config.model, trust_remote_code=code)
    torch.manual_seed(config.seed)
    model = load_model(config.model, torch.float32, kind, trust_remote_code=code)
    torch.manual_seed(state)
    adapted, rows = adapt(model, tokenizer, config, resumed=False)
    return adapted, tokenizer, rows


def batch_of(tokenizer: Any, rows: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    """Ids up to the newest token, which is in each row, and labels for some."""
    generator = torch.Generator().manual_seed(1)
    newest = max(tokenizer.get_vocab().values())
    ids = torch.randint(5, newest, (rows, length), generator=generator)
    ids[:, 2], ids[:, 4] = newest, newest - 1
    labels = torch.where(torch.rand(rows, length, generator=generator) < 0.5, ids, -100)
    labels[:, 1] = newest
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def learn(model: Any, tokenizer: Any, steps: int = 2) -> None:
    """A few steps of what can learn, without dropout."""
    model.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        model(**batch_of(tokenizer)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits_of(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch_of(tokenizer)).logits


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under all of its names, rows in their tables and by themselves."""
    rows = {name: p for name, p in model.named_parameters() if name.endswith("trainable_rows")}
    return {name: value.detach().clone() for name, value in {**model.state_dict(), **rows}.items()}


def checkpoint_of(config: TrainConfig) -> tuple[Path, torch.Tensor]:
    """A checkpoint of a run that learned, and the logits of its model."""
    model, tokenizer, _ = fresh(config)
    if config.freeze == ["*"]:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("trainable_rows"))
    learn(model, tokenizer)
    total = {"tokens": 1234, "supervised_tokens": 56}
    written = save(Path(config.output_dir), 2, model, tokenizer, [], {"config": asdict(config), "total": total})
    return written, logits_of(model, tokenizer)
