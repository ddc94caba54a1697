"""One training step of an embedding table, lookup, backward and optimizer: fastft, its peers, and the floor.

The floor is a copy of as many bytes as the touched rows cost an exact AdamW, between two buffers that exist already,
half of them read and half written. With N positions, U different rows among them and 4 D bytes a row,

    forward reads p, m and v of U rows and writes N      backward reads N rows and writes U
    the step reads g, p, m and v of U rows and writes p, m and v            (11 U + 2 N) 4 D bytes in all

and a row's GB/s are those bytes over its time, so that its share of the floor is its share of the copy bandwidth. Ids,
row numbers and padding are not counted; nor is it deducted that a row that does not lag behind needs no m and v in
forward. SparseAdam, and fastft's "lazy", never need them there: 9 U + 2 N would do.

Each provider trains a table of its own, on the same batches in the same order: ids with Zipf's distribution (exponent
1, ranks shuffled over the table), and a given gradient of what was read. Batches were drawn beforehand, and a step
takes the next one: rows come back after one step or many, and fall behind meanwhile. A step with each batch comes
before the first timed one, so that all have state for all rows that come; the check takes as many. Cases called
`-new-rows` begin earlier: in a step of the first 23 rounds 700 to 1,100 rows are new, whose state fastft and
SparseAdam write to memory that the system has yet to find, and dense AdamW wrote long ago. Of a thousand steps one has
some 150 such rows, on average.

`eager` is `nn.Embedding` with torch's fused AdamW. `sparse-adam` and `fastft-lazy` are another optimizer, which leaves
untouched rows alone, and are checked against SparseAdam in fp64. Providers called `rows-` train something else: two
chosen rows of a frozen table.

    python -m pytest bench/embedding.py -k qwen2.5 --providers fastft,eager
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.cases import Case
from bench.contest import DEVICES, Op
from bench.peers import EMBEDDING
from bench.shapes import SMOKE_TABLES, TABLES, Extent, table_cases
from bench.tables import BATCHES, Start, Table, TableInputs


class Training(Op):
    """An op whose step goes on from the state that the last one left."""

    def outputs(self, provider: Start, case: Case, upcast: torch.dtype | None = None) -> dict[str, Tensor]:
        """After a step with each batch: what the last lookup returned, and how far the table is from where it began."""
        inputs = case.inputs(upcast)
        assert isinstance(inputs, TableInputs)
        call = self.step(provider, inputs)
        for _ in range(BATCHES):
            inputs.reset()
            call()
        return {**inputs.left, "moved": inputs.trainings[-1].table().detach() - inputs.initial}


def cases(extent: Extent) -> list[Table]:
    return table_cases({device: SMOKE_TABLES if extent == "smoke" else TABLES[device] for device in DEVICES})


def floor(inputs: TableInputs) -> Callable[[], Tensor]:
    """A copy that reads and writes, together, what the touched rows cost; both buffers touched beforehand."""
    read, written = (inputs.noise.new_full((inputs.traffic // 2 // inputs.noise.itemsize,), x) for x in (1.0, 0.0))
    return lambda: written.copy_(read)


def step(start: Start, inputs: TableInputs) -> Callable[[], Tensor]:
    """One training step with the next batch; what was read is left in `inputs`."""
    training, numbers = inputs.begin(start), itertools.count()

    def call() -> Tensor:
        ids, gradient = inputs.batch(next(numbers))
        rows = training.lookup(ids)
        rows.backward(gradient)  # type: ignore[no-untyped-call]
        training.optimizer.step()
        inputs.rows = rows.detach()
        return inputs.rows

    return call


OP = Training("embedding", EMBEDDING, cases, floor, step)


@pytest.mark.filterwarnings("ignore")
def test_embedding(case: Case, measure: Callable[[Op, Case], None]) -> None:
    measure(OP, case)
