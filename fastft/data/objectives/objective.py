"""What an objective is: how records become samples, and samples a batch with something to learn."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from fastft.data.batch import Batch
from fastft.data.draws import Draw
from fastft.data.masking import Rendered
from fastft.data.sample import Example, Sample, Samples

NOTHING = "no token of it is to be learned: an empty completion or text, or no assistant turn"


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
            samples may share a row. generates: its models can complete prompts, `prompts_at_once` (None: any number).
    """

    tokenizer: Any
    max_length: int = 1024

    name: ClassVar[str]
    auto_class: ClassVar[str]
    packs: ClassVar[bool] = False
    generates: ClassVar[bool] = False
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

    def example(self, rendered: Rendered, origin: str) -> Example | None:
        """A record as a prompt and what is to follow; None where there is no such thing."""
        return None

    def opening(self, sample: Sample, origin: str) -> Example:
        """A sample as a prompt and what is to follow: from its boundary, else its first learned token on; where there
        is neither, all but its first quarter."""
        learned = next((place for place, weight in enumerate(sample.weights) if weight), 0)
        seam = sample.boundary or (learned if learned > 1 else max(1, len(sample.input_ids) // 4))
        ids = sample.input_ids
        prompt, rest = (str(self.tokenizer.decode(part, skip_special_tokens=True)) for part in (ids[:seam], ids[seam:]))
        return Example(prompt, rest.strip(), ids[:seam], origin)

    def prompted(self, model: Any, prompts: dict[str, Any]) -> dict[str, Any]:
        """What `model.generate` is given for prompts: `input_ids` and `attention_mask`, (B, T), padded on the left."""
        return prompts

    def prepare(self, model: Any) -> None:  # noqa: B027
        """Take what a batch needs to know from the model.

        Raises:
            ValueError: the model cannot be trained with this objective; says why.
        """

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
