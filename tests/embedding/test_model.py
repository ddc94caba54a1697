"""Which models have rows to train, and what is said of the others."""

import peft
import pytest
import torch
import transformers
from hf.tiny_models import VOCAB
from torch import Tensor, nn

from embedding.small import llama
from fastft.embedding import TrainableRows

pytestmark = [  # of PEFT with transformers 5.23
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
]


def test_models_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"model is a Linear; expected a transformers\.PreTrainedModel"):
        TrainableRows(nn.Linear(2, 2), [1])
    model = llama(tied=True)
    rows = TrainableRows(model, [5])
    with pytest.raises(ValueError, match=r"has TrainableRows already: call their merge\(\)"):
        TrainableRows(model, [6])
    rows.remove()
    TrainableRows(model, [6]).remove()
    adapted = peft.get_peft_model(llama(tied=True), peft.LoraConfig(target_modules=["embed_tokens"]))
    with pytest.raises(TypeError, match="the input embedding of LlamaForCausalLM carries a PEFT adapter"):
        TrainableRows(adapted, [5])
    meta = llama(tied=True).to("meta")
    with pytest.raises(TypeError, match=r"\(Embedding\) is on the meta device"):
        TrainableRows(meta, [5])
    eight = llama(tied=False)
    eight.lm_head.weight = nn.Parameter(torch.zeros(13, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        TypeError, match=r"output embedding of LlamaForCausalLM \(Linear\) holds torch.int8 \(quantised"
    ):
        TrainableRows(eight, [5])
    eight.lm_head = nn.Identity()
    with pytest.raises(TypeError, match=r"is a Identity; expected a torch.nn.Linear"):
        TrainableRows(eight, [5])
    norm = llama(tied=True)
    norm.model.embed_tokens.max_norm = 1.0
    with pytest.raises(TypeError, match="has max_norm"):
        TrainableRows(norm, [5])

    class Odd(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids).tanh()

    odd = llama(tied=True)
    odd.model.embed_tokens.__class__ = Odd
    with pytest.raises(TypeError, match="Odd is more than a lookup times its embed_scale"):
        TrainableRows(odd, [5])
    odd.model.embed_tokens.__class__ = nn.Embedding
    assert odd.model.embed_tokens.weight.requires_grad  # nothing was done
    TrainableRows(odd, [5])


def test_an_encoder_without_a_head() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertModel(config).eval()
    rows = TrainableRows(model, [5])
    model(input_ids=torch.tensor([[5, 6]])).last_hidden_state.square().sum().backward()
    assert [name for name, _ in rows.named_parameters()] == ["input"]
    assert rows.input.grad.abs().sum() > 0
