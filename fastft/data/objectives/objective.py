"""What an objective is: how records become samples, and samples a batch with something to learn."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastft.data.batch import Batch
from fastft.data.draws import Draw
from fastft.data.masking import Rendered
from fastft.data.sample import Example, Sample, Samples

NOTHING = (
    "no token of it is to be learned: an empty completion or text, or no turn of a role in train_roles (assistant, "
    "unless set)"
)


class Encoded(NamedTuple):
    """What became of one record: its samples, whether something of it was cut off; if there are none, why."""

    samples: list[Sample]
    truncated: bool = False
    reason: str = NOTHING


@dataclass
class Objective(ABC):
    """A way to learn from text. Fields are its options; their names are those of the configuration.

    Attributes:
        tokenizer: of the model.
        max_length: tokens of a sample at most.
        batch_options: names of fields that only `batch` reads: they leave a cached corpus as it is.
        name: as in the configuration. auto_class: of transformers, by which its models are loaded. packs: several
            samples may share a row. prompts_at_once: that its models complete (None: any number).
    """

    tokenizer: Any
    max_length: int = 1024

    name: ClassVar[str]
    auto_class: ClassVar[str]
    packs: ClassVar[bool] = False
    prompts_at_once: ClassVar[int | None] = None
    batch_options: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length: got {self.max_length}; at least 2 is wanted, a token and the one before it")

    @abstractmethod
    def encode(self, records: Sequence[Rendered]) -> Iterator[Encoded]:
        """Samples of each record, in order. A pure function of the record: nothing is drawn here."""

    @abstractmethod
    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        """The samples with these indices, one row each or, if it `packs`, several in a row.

        Whatever is random is drawn from `draw` and the sample's index, and from nothing else.
        """

    @property
    def generates(self) -> bool:
        """Whether the model, once prepared for, can complete prompts as it is trained to."""
        return False

    def check(self, samples: Samples, name: str) -> None:  # noqa: B027
        """Look at a whole corpus, as soon as it is loaded; `name` says in errors which one it is.

        Raises:
            ValueError: nothing can be learned of these samples together, however good each of them is.
        """

    def longest(self, samples: Samples) -> int:
        """Tokens, at most, of what a batch makes of one of n >= 1 samples, special ones included."""
        return int(samples.lengths.max())

    def example(self, rendered: Rendered, origin: str) -> Example | None:
        """A record as a prompt and what is to follow; None where there is no such thing."""
        return None

    def opening(self, sample: Sample, origin: str) -> Example:
        """A sample as a prompt and what is to follow: the last stretch of learned tokens that is not blank, of a
        conversation its last turn; where that is all of the sample, all but its first quarter."""
        ids = sample.input_ids
        start, end = self._answer(sample)
        return Example(self._read(ids[:start]), self._read(ids[start:end]).strip(), ids[:start], origin)

    def _answer(self, sample: Sample) -> tuple[int, int]:
        """[start, end) of the tokens that are to follow a prompt; 0 < start."""
        answers = [run for run in learned_runs(sample) if self._read(sample.input_ids[slice(*run)]).strip()]
        if answers and answers[-1][0] > 1:
            return answers[-1]
        return max(1, len(sample.input_ids) // 4), len(sample.input_ids)

    def _read(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def prompted(self, model: Any, prompts: dict[str, Any]) -> dict[str, Any]:
        """What `model.generate` is given for prompts: `input_ids` and `attention_mask`, (B, T), padded on the left."""
        return prompts

    def outline(self, model: Any) -> None:  # noqa: B027
        """Take from the model what its modules and configuration tell: it may be one without weights.

        Raises:
            ValueError: as far as these tell, the model cannot be trained with this objective; says why.
        """

    def prepare(self, model: Any) -> None:
        """Take what a batch needs to know from the model, and try whether it does what is asked of it.

        Raises:
            ValueError: the model cannot be trained with this objective; says why.
        """
        self.outline(model)

    @property
    def pad_token_id(self) -> int:
        """The padding token; where there is none any id will do, as padding is masked by place, never by id."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0


def blocks(length: int, size: int, overlap: int = 0) -> Iterator[tuple[int, int]]:
    """[start, end) of pieces of at most `size` that cover `length`; each begins with the last `overlap` of the one
    before, and the short last one is kept."""
    for start in range(0, max(1, length - overlap), size - overlap):
        yield start, min(start + size, length)


def learned_runs(sample: Sample) -> list[tuple[int, int]]:
    """[start, end) of each stretch of learned tokens, in order."""
    learned = np.concatenate([[0], np.asarray(sample.weights) != 0, [0]])
    edges = np.flatnonzero(np.diff(learned)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
