"""A step of whole training runs: fastft's Trainer against transformers' on the same model, samples, labels and masks.

minilm      MiniLM learns English by masked tokens, 15 % of them
smollm2     SmolLM2-135M learns to write docstrings' first lines: 85 % of the tokens are prompt
gemma3      the same with the shape of Gemma-3-270M, random weights and a vocabulary of 262,144
...-packed  fastft packs the samples of a step into rows. transformers pads the same samples to one row each, as its
            collators do; `transformers-flat` puts them into one row with its DataCollatorWithFlattening

Without packing samples are of like lengths, so that little is padding; with packing they come as they are. Weights are
fp32, matmuls fp32 or, under autocast, bf16; torch's fused AdamW without decay, gradients clipped at 1.0, no evaluation
and no saving. The floor is fastft's model on the same batches in a bare loop: forward, loss, backward, step of the
optimizer. So `x floor` is what data, clipping, reports and all else outside model, loss and optimizer cost. A row's
`outside` is the same by the clock within each step, which is far less noisy.

tokens/s counts no padding. Memory is the most that a trainer's process had resident during a step, all of it counted:
libraries, weights, gradients, optimizer state. How a lap is taken: `bench/trainers.py`; by turns: `bench/matches.py`.

    python -m pytest bench/trainer.py --all -k "gemma3 and not packed"
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import BertConfig, BertForMaskedLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from bench.conftest import chosen_providers
from bench.contest import expect
from bench.matches import Match, TrainerContest
from bench.peers import TRAINERS
from bench.rows import Record
from bench.shapes import Extent
from bench.trainers import CHECKED, Job
from fastft.data.sources import read
from fastft.hf.pretrained import load_model, load_tokenizer

GEMMA3: dict[str, Any] = {
    "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
    "query_pre_attn_scalar": 256, "max_position_embeddings": 2048,
}  # fmt: skip
TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2,
}  # fmt: skip
RECORDS = {"minilm": 600, "smollm2": 400, "gemma3": 400}  # samples at least: those of every step


@dataclass(frozen=True)
class Case:
    """A model and the size of its batches: `rows` of at most `length` tokens."""

    name: str
    rows: int
    length: int
    packing: bool = False
    bf16: bool = False

    def __str__(self) -> str:
        return f"cpu-{self.name}-{self.rows}x{self.length}-{'bf16' if self.bf16 else 'fp32'}"

    @property
    def model(self) -> str:
        return self.name.removesuffix("-packed")

    @property
    def objective(self) -> str:
        return "mlm" if self.model == "minilm" else "clm"


PADDED = (Case("minilm", 16, 128), Case("smollm2", 4, 256), Case("gemma3", 3, 512))
PACKED = (
    Case("minilm-packed", 4, 256, packing=True),
    Case("smollm2-packed", 1, 512, packing=True),
    Case("gemma3-packed", 1, 512, packing=True),
)


USUAL = (("minilm", False), ("smollm2", True), ("minilm-packed", False))  # some 3 minutes; all of them take 13


class OP:
    """What bench/conftest.py asks a bench file for."""

    @staticmethod
    def cases(extent: Extent) -> list[Case]:
        cases = [*PADDED, *(replace(case, bf16=True) for case in PADDED[:2]), *PACKED]
        if extent == "usual":
            return [case for case in cases if (case.name, case.bf16) in USUAL]
        return [replace(case, rows=4, length=64) if extent == "smoke" else case for case in cases]


@pytest.mark.filterwarnings("ignore")
def test_trainer(
    case: Case,
    benchmark: BenchmarkFixture,
    pytestconfig: pytest.Config,
    record: Callable[[list[Record]], None],
    tmp_path: Path,
) -> None:
    most = pytestconfig.getoption("most")
    job = Job(
        model=str(tmp_path / "model"), data=str(tmp_path / "data.jsonl"), objective=case.objective, rows=case.rows,
        length=case.length, packing=case.packing, bf16=case.bf16, steps=most + CHECKED,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    vocabulary = write_model(case, Path(job.model), pytestconfig.getoption("smoke"))
    write_data(case, Path(job.data))
    names = TRAINERS if case.packing else TRAINERS[:2]
    contest = TrainerContest(
        Match(case.name, job, vocabulary, names), chosen_providers(pytestconfig),
        cap=pytestconfig.getoption("cap"), most=most,
    )  # fmt: skip
    contest.run(benchmark)
    record(contest.records())
    expect(pytestconfig.getoption("smoke"), contest.absent, contest.broken)


def write_model(case: Case, folder: Path, smoke: bool) -> int:
    """The model and its tokenizer, so that all trainers start from the same weights; returns the vocabulary's size."""
    try:
        tokenizer = load_tokenizer("builtin:minilm" if smoke or case.model == "minilm" else "builtin:smollm2")
    except ImportError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    if smoke:
        model = tiny(case.model, len(tokenizer))
    elif case.model == "gemma3":
        model = Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA3))
    else:
        kind = "AutoModelForMaskedLM" if case.objective == "mlm" else "AutoModelForCausalLM"
        model = load_model(f"builtin:{case.model}", torch.float32, kind)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.config.vocab_size)


def tiny(name: str, vocabulary: int) -> Any:
    if name == "minilm":
        size = {key: value for key, value in TINY.items() if key not in ("head_dim", "num_key_value_heads")}
        return BertForMaskedLM(BertConfig(vocab_size=vocabulary, **size))
    if name == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=vocabulary, sliding_window=32, **TINY))
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **TINY))


def write_data(case: Case, file: Path) -> None:
    """Documents, or functions with the first lines of their docstrings; without packing those of like lengths, by
    characters (four to a token)."""
    if case.objective == "mlm":
        made: list[dict[str, str]] = [dict(r.columns) for r in read("builtin:stdlib-docs")]
        longest = 5 * case.length
    else:
        found = [r.columns for r in read("builtin:stdlib-docstrings")]
        made = [{"prompt": r["prompt"], "completion": r["completion"].split("\n\n")[0]} for r in found]
        longest = 4 * case.length
    if not case.packing:
        made = [r for r in made if longest / 2 <= sum(map(len, r.values())) <= longest]
    file.write_text("".join(json.dumps(r) + "\n" for r in made[: RECORDS[case.model]]), encoding="utf-8")
