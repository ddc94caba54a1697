"""Who else does it: each peer one function, imported only when it is asked for.

A peer's function takes the device and returns its mean loss on labels y (N,) with `IGNORE_INDEX` for ignored tokens:
`(x, w, y)` of x (N, D) and w (V, D) for a head, `(z, y)` of z (N, V) for logits. A table's peer returns what starts its
training, see bench/tables.py. It raises `ImportError` or `Unavailable` where it cannot run, and the text becomes the
reason in the report.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cases import IGNORE_INDEX
from bench.tables import Start, Training

Loss = Callable[..., Tensor]
Provider = Callable[..., Any]


class Unavailable(RuntimeError):
    """This peer cannot run here; the text says why."""


@dataclass(frozen=True)
class Peer:
    """`dense`: its cost does not depend on how many tokens are supervised. `compiled`: it compiles on first use.
    `like`: the peer whose result is to be its own, and whose run in fp64 judges both. `num_items`: it takes this
    keyword, the denominator of the mean; of the others the mean is scaled."""

    load: Callable[[str], Provider]
    dense: bool = False
    compiled: bool = False
    like: str = "eager"
    num_items: bool = False


def on_a_gpu(device: str, loss: Loss) -> Loss:
    if not device.startswith("cuda"):
        raise Unavailable("its kernels need a GPU")
    return loss


def fastft(device: str) -> Loss:
    from fastft.losses import linear_cross_entropy

    return linear_cross_entropy


def eager(device: str) -> Loss:
    return lambda x, w, y: F.cross_entropy(F.linear(x, w), y)


def _on_supervised_rows(loss: Loss) -> Loss:
    """Of the first tensor; the last holds the labels."""

    def compacted_loss(rows: Tensor, *others: Tensor) -> Tensor:
        *constant, y = others
        keep = (y != IGNORE_INDEX).nonzero().squeeze(1)
        return loss(rows.index_select(0, keep), *constant, y.index_select(0, keep))

    return compacted_loss


def compacted(device: str) -> Loss:
    """Eager on the supervised rows: what a careful user writes by hand."""
    return _on_supervised_rows(eager(device))


def _torch_fused(**options: Any) -> Loss:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy")
    chosen = torch.nn.LinearCrossEntropyOptions(**options)
    return lambda x, w, y: F.linear_cross_entropy(x, w, y, options=chosen)


def torch_default(device: str) -> Loss:
    """Torch's own fused loss with `LinearCrossEntropyOptions()`."""
    return _torch_fused()


# CPU: the best single setting for fp32 and bf16 of those in the log of NOTES.md; 2 cores of an AMD EPYC (Zen 4),
# torch 2.13, 2026-11-21. CUDA: torch's default policy with larger chunks; chosen by reading, never measured.
TORCH_TUNED: dict[str, dict[str, Any]] = {
    "cpu": {"acc_policy": "balanced", "batch_chunk_size": 512, "chunking_method": None},
    "cuda": {"acc_policy": "compact", "batch_chunk_size": 4096, "chunking_method": None},
}


def torch_tuned(device: str) -> Loss:
    """The same with the best of its settings for this device."""
    return _torch_fused(**TORCH_TUNED[torch.device(device).type])


def tuned_compacted(device: str) -> Loss:
    """Torch's tuned fused loss on the supervised rows: the strongest thing one can write with torch alone."""
    return _on_supervised_rows(torch_tuned(device))


def liger(device: str) -> Loss:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return on_a_gpu(device, liger_fused_linear_cross_entropy)


def cut_cross_entropy(device: str) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    impl = "cce" if device.startswith("cuda") else "torch_compile"
    return lambda x, w, y: linear_cross_entropy(x, w, y, impl=impl)


class TrlModel(nn.Module):
    """As much of a causal model as TRL's fused head asks for: a body that hands on what it is given, and a head."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(model_type="head"))

    def __init__(self) -> None:
        super().__init__()
        self.head: Any = None

    def base_model(self, x: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(last_hidden_state=x)

    def get_output_embeddings(self) -> Any:
        return self.head


def trl_fused(device: str) -> Loss:
    """The head of TRL's SFTTrainer, in tiles of tokens and vocabulary. Without Triton, so on the CPU, it runs on
    ignored tokens too."""
    from trl.trainer.utils import add_fused_lm_head

    model: Any = TrlModel()
    add_fused_lm_head(model)

    def loss(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        model.head = SimpleNamespace(weight=w, bias=None)
        value: Tensor = model.forward(x[None], shift_labels=y[None], fused_lm_head=True).loss
        return value

    return loss


def torchtune_chunked(device: str) -> Loss:
    """torchtune's loss on logits in chunks, which its models make by the head on a chunk of tokens at a time."""
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    chunked = CEWithChunkedOutputLoss()

    def loss(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        logits = [F.linear(part, w) for part in x[None].chunk(chunked.num_output_chunks, dim=1)]
        value: Tensor = chunked(logits, y[None])
        return value

    return loss


LINEAR_CROSS_ENTROPY = {
    "eager": Peer(eager, dense=True),
    "compacted": Peer(compacted),
    "torch-default": Peer(torch_default, dense=True),
    "torch-tuned": Peer(torch_tuned, dense=True),
    "tuned-compacted": Peer(tuned_compacted),
    "liger": Peer(liger, dense=True, compiled=True),
    "cce": Peer(cut_cross_entropy, compiled=True),
    "trl": Peer(trl_fused, dense=not torch.cuda.is_available(), compiled=torch.cuda.is_available()),
    "torchtune": Peer(torchtune_chunked, dense=True),
    "fastft": Peer(fastft, num_items=True),
}


def fastft_logits(device: str) -> Loss:
    from fastft.losses import cross_entropy

    return cross_entropy


def eager_logits(device: str) -> Loss:
    return lambda z, y: F.cross_entropy(z, y)


def compacted_logits(device: str) -> Loss:
    """Eager on the supervised rows, gathered."""
    return _on_supervised_rows(eager_logits(device))


def compiled_logits(device: str) -> Loss:
    """Eager, compiled for each shape by itself. After a few shapes torch goes back to eager without a word: hence the
    reset, and `fullgraph`, which makes an error of it."""
    torch.compiler.reset()
    return torch.compile(eager_logits(device), fullgraph=True, dynamic=False)


def liger_logits(device: str) -> Loss:
    """In place: the gradient is written over the logits."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return on_a_gpu(device, liger_cross_entropy)


def quack_logits(device: str) -> Loss:
    from quack import cross_entropy

    return on_a_gpu(device, cross_entropy)


CROSS_ENTROPY = {
    "eager": Peer(eager_logits, dense=True),
    "compacted": Peer(compacted_logits),
    "torch-compile": Peer(compiled_logits, dense=True, compiled=True),
    "liger": Peer(liger_logits, compiled=True),
    "quack": Peer(quack_logits, dense=True, compiled=True),
    "fastft": Peer(fastft_logits, num_items=True),
}


LR = 1e-3
ADAMW: dict[str, Any] = {"lr": LR, "weight_decay": 0.01}  # of a table
# Like torch's SparseAdam, which has no decay and adds eps to the root before its correction, AdamW after it: with an
# eps that is nothing to any root both are the same.
LAZY_ADAM: dict[str, Any] = {"lr": LR, "eps": 1e-20}


def _embedding(table: Tensor, sparse: bool = False) -> nn.Embedding:
    rows, width = table.shape
    return nn.Embedding(rows, width, sparse=sparse, _weight=table)


def eager_table(device: str) -> Start:
    """A dense gradient, and torch's fused AdamW over the whole table."""

    def start(table: Tensor, chosen: list[int]) -> Training:
        embedding = _embedding(table)
        return Training(embedding, torch.optim.AdamW([embedding.weight], fused=True, **ADAMW), lambda: table)

    return start


def sparse_adam_table(device: str) -> Start:
    """A sparse gradient and torch's SparseAdam, which steps a row only where it has a gradient: another optimizer."""

    def start(table: Tensor, chosen: list[int]) -> Training:
        embedding = _embedding(table, sparse=True)
        return Training(embedding, torch.optim.SparseAdam([embedding.weight], **LAZY_ADAM), lambda: table)

    return start


def fastft_table(device: str) -> Start:
    """What dense AdamW does."""
    return _fastft_table(**ADAMW)


def fastft_lazy_table(device: str) -> Start:
    """What SparseAdam does."""
    return _fastft_table(semantics="lazy", weight_decay=0.0, **LAZY_ADAM)


def _fastft_table(**options: Any) -> Start:
    from fastft.embedding.table import SparseEmbedding
    from fastft.optim import SparseAdamW

    def start(table: Tensor, chosen: list[int]) -> Training:
        embedding = SparseEmbedding.from_embedding(_embedding(table))
        optimizer = SparseAdamW(embedding.parameters(), **options)

        def trained() -> Tensor:
            optimizer.flush()
            return table

        return Training(embedding, optimizer, trained)

    return start


def gathered_rows(device: str) -> Start:
    """Chosen rows by hand: a frozen lookup, and the rows' own values put over its output where they were read."""

    def start(table: Tensor, chosen: list[int]) -> Training:
        rows = nn.Parameter(table[chosen])
        slots = torch.full((len(table),), -1, device=table.device)
        slots[chosen] = torch.arange(len(chosen), device=table.device)

        def lookup(ids: Tensor) -> Tensor:
            slot = slots[ids]
            there = (slot >= 0).nonzero()[:, 0]
            return F.embedding(ids, table).index_copy(0, there, rows[slot[there]])

        def trained() -> Tensor:
            return table.index_copy(0, torch.tensor(chosen, device=table.device), rows.detach())

        return Training(lookup, torch.optim.AdamW([rows], fused=True, **ADAMW), trained)

    return start


class Lookup(nn.Module):
    """As much of a model as is needed to choose rows of its table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.embedding = _embedding(table)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.embedding(ids)
        return rows


def fastft_rows(device: str) -> Start:
    """Chosen rows."""
    from fastft.embedding.rows import TrainableRows

    def start(table: Tensor, chosen: list[int]) -> Training:
        model = Lookup(table)
        rows = TrainableRows(model, chosen)
        return Training(model, torch.optim.AdamW(rows.parameters(), fused=True, **ADAMW), lambda: table)

    return start


def peft_rows(device: str) -> Start:
    """Chosen rows: PEFT's trainable tokens."""
    from peft import TrainableTokensConfig, get_peft_model

    def start(table: Tensor, chosen: list[int]) -> Training:
        config = TrainableTokensConfig(token_indices=chosen, target_modules=["embedding"])
        model: Any = get_peft_model(Lookup(table), config)
        learning = [p for p in model.parameters() if p.requires_grad]
        layer = model.base_model.model.embedding

        def trained() -> Tensor:
            merged: Tensor = layer.get_merged_weights(layer.active_adapters)
            return merged

        return Training(model, torch.optim.AdamW(learning, fused=True, **ADAMW), trained)

    return start


def fbgemm_table(device: str) -> Start:
    import fbgemm_gpu  # noqa: F401

    raise Unavailable("never run: its Adam needs a GPU, skips untouched rows, and steps within backward")


EMBEDDING = {
    "eager": Peer(eager_table, dense=True),
    "sparse-adam": Peer(sparse_adam_table, like="sparse-adam"),
    "fbgemm": Peer(fbgemm_table, like="sparse-adam"),
    "rows-by-hand": Peer(gathered_rows, like="rows-by-hand"),
    "rows-peft": Peer(peft_rows, dense=True, like="rows-by-hand"),
    "rows-fastft": Peer(fastft_rows, like="rows-by-hand"),
    "fastft-lazy": Peer(fastft_lazy_table, like="sparse-adam"),
    "fastft": Peer(fastft_table),
}


def load(peers: dict[str, Peer], device: str) -> tuple[dict[str, Provider], dict[str, str]]:
    """What runs here, and the reason for each that does not."""
    providers, reasons = {}, {}
    for name, peer in peers.items():
        try:
            providers[name] = peer.load(device)
        except (ImportError, Unavailable) as error:
            reasons[name] = str(error).strip().splitlines()[0]
    return providers, reasons


TRAINERS = ("transformers", "fastft", "transformers-flat")  # of bench/trainers.py, each in a process of its own


def named(known: Collection[str], option: str) -> list[str]:
    """The names in a comma-separated option; raises `pytest.UsageError` for one that nobody has."""
    names = [name.strip() for name in option.split(",")]
    unknown = sorted(set(names) - set(known) - {"floor"})
    if unknown:
        raise pytest.UsageError(f"--providers: {', '.join(unknown)} unknown; known: {', '.join(known)}")
    return names
