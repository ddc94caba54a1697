"""PEFT loads what was trained."""

from pathlib import Path

import peft
import pytest
import torch
from hf.tiny_models import model_and_batch

from embedding.small import LORA, batch, llama
from fastft.embedding import TrainableRows

pytestmark = [  # of PEFT with transformers 5.23
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
]


@pytest.mark.parametrize("lora", [False, True], ids=["rows", "rows and LoRA"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_peft_loads_the_adapter(tied: bool, lora: bool, tmp_path: Path) -> None:
    model = llama(tied=tied).eval()
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA, init_lora_weights=False))
    rows = TrainableRows(model, [12, 5])
    with torch.no_grad():
        for parameter in rows.parameters():
            parameter.normal_()
        want = model(**batch()).logits
    if lora:
        model.save_pretrained(tmp_path)
    rows.save_adapter(tmp_path)
    if lora:
        rows.save_adapter(tmp_path)  # over itself
    fresh = llama(tied=tied).eval()
    assert not torch.allclose(fresh(**batch()).logits, want)
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(**batch()).logits, want)
    if not lora:
        with pytest.raises(ValueError, match="holds a TRAINABLE_TOKENS adapter; expected LoRA"):
            rows.save_adapter(tmp_path)


def test_peft_would_drop_a_bias(tmp_path: Path) -> None:
    model, _ = model_and_batch("bert")
    with pytest.raises(ValueError, match="PEFT drops the bias of a head"):
        TrainableRows(model, [5]).save_adapter(tmp_path)
    assert not list(tmp_path.iterdir())
