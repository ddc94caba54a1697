"""Documents to pairs of segments that follow each other, made of whole sentences."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastft.data.objectives.objective import blocks

END = re.compile(
    # . ! ? or an ellipsis, with quotes and brackets that close, where white space follows and then no small letter:
    # that spares most abbreviations
    "(?<![.!?\u2026])[.!?\u2026]+[\"'\u201d\u2019)\\]\u00bb]*(?=\\s+[^\\sa-z])"
    # the full stops of Chinese and Japanese
    "|[\u3002\uff01\uff1f]+[\u201d\u2019\u300d\u300f\uff09]*"
    # a line that an empty one follows, or one that begins with no small letter: hard-wrapped sentences go on
    "|\n(?=[^\\S\n]*\n)|\n(?=[^\\S\n]*[^\\sa-z])"
)

TRIES = 32
ONE_DOCUMENT = (
    "'nsp' takes random sentences from other documents, and all samples are of one document; give more of "
    "them (one file, or one line of .jsonl, each)"
)

Span = tuple[int, int]  # [start, end) of a document's tokens


def sentence_ends(text: str) -> list[int]:
    """Ends of the sentences of a text, in characters: they cover it all, and none is blank unless the text is."""
    ends = [match.end() for match in END.finditer(text)]
    ends = [end for start, end in pairwise([0, *ends]) if text[start:end].strip()]
    if not ends or text[ends[-1] :].strip():
        return [*ends, len(text)]
    return [*ends[:-1], len(text)]


def sentences(text: str, offsets: Sequence[Span], longest: int) -> list[Span]:
    """The sentences of a document as runs of its tokens, none empty; one of more than `longest` tokens is cut up.

    A token across the end of a sentence belongs to the one that it begins in.
    """
    starts = np.asarray(offsets, np.int64).reshape(-1, 2)[:, 0]
    number = np.searchsorted(sentence_ends(text), np.maximum.accumulate(starts), side="right")  # (T,) of each token
    seams = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(starts)] if len(starts) else []
    return [(start + a, start + b) for start, end in pairwise(seams) for a, b in blocks(end - start, longest)]


def segment_pairs(runs: Sequence[Span], longest: int) -> Iterator[tuple[Span, Span]]:
    """Pairs of neighbouring segments A and B, each of whole sentences and at most `longest` tokens.

    Segments are filled with sentences in order, and two and two make a pair. The last of an odd number is paired with
    the one before it, which then stands in two pairs; a single one is cut in two where that is nearest to its middle.
    One sentence makes no pair.
    """
    if len(runs) < 2:
        return
    segments = [runs[0]]
    for start, end in runs[1:]:
        if end - segments[-1][0] <= longest:
            segments[-1] = (segments[-1][0], end)
        else:
            segments.append((start, end))
    if len(segments) == 1:
        (start, end), ends = segments[0], [end for _, end in runs[:-1]]
        middle = min(ends, key=lambda seam: abs(2 * seam - start - end))
        segments = [(start, middle), (middle, end)]
    yield from zip(segments[::2], segments[1::2], strict=False)
    if len(segments) % 2:
        yield segments[-2], segments[-1]


def other_document(documents: Any, index: int, rng: np.random.Generator) -> int:
    """A sample of another document than that of sample `index`, each equally probable.

    Args:
        documents: (n,) number of the document of each sample; few of them are read.

    Raises:
        ValueError: there is no other document.
    """
    own, n = documents[index], len(documents)
    for other in rng.integers(n, size=TRIES):
        if documents[other] != own:
            return int(other)
    others = np.flatnonzero(np.asarray(documents) != own)
    if not len(others):
        raise ValueError(ONE_DOCUMENT)
    return int(rng.choice(others))
