"""Where turns end among the tokens of a record."""

from collections.abc import Sequence

import numpy as np

from fastft.data.masking import Rendered


def closing_tokens(offsets: Sequence[tuple[int, int]], rendered: Rendered) -> list[int | None]:
    """For each target, which token is the last of its end-of-turn token; None where it has none or was cut off.

    With the weights of the same tokens this tells whether a model learns to stop.
    """
    starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
    ends = np.maximum.accumulate(ends)
    places = []
    for span, turn in rendered.spoken():
        place = int(np.searchsorted(ends, span.end))
        whole = turn.closing is not None and place < len(ends) and starts[place] < span.end
        places.append(place if whole else None)
    return places
