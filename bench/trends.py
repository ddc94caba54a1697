"""What rows say together: how time grows with one axis, and how far from fp64 the worst gradient is."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.rows import Row

MEANING = {
    "N": "tokens",
    "M": "supervised tokens",
    "V": "rows of the vocabulary",
    "D": "width",
    "U": "touched rows",
    "P": "processes",
}
WANTED = {  # exponents of somebody who pays for what learns only; on P processes, of a step that is shared without loss
    "head-N": 0.0, "head-M": 1.0, "head-V": 1.0, "head-D": 1.0, "head-P": -1.0, "table-U": 1.0, "table-V": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Rows of one case, in which one axis grows."""

    case: str
    dtype: str
    rest: str  # of the axes
    points: dict[str, list[tuple[int, float]]]  # provider -> (axis, median ms), ascending

    @property
    def axis(self) -> str:
        return self.case.rpartition("-")[2]

    @property
    def meaning(self) -> str:
        return MEANING.get(self.axis, self.axis)

    @property
    def slopes(self) -> dict[str, float]:
        """By provider; of those with two points at least."""
        return {name: slope(points) for name, points in self.points.items() if len(points) > 1}


def slope(points: Iterable[tuple[float, float]]) -> float:
    """The power b of the law y = a x^b that is nearest to the points: least squares of the logarithms.

    Raises `statistics.StatisticsError` for fewer than two points, or all at one x.
    """
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    return statistics.linear_regression(xs, ys).slope


def series_of(rows: list[Row]) -> list[Series]:
    made = []
    for case, dtype in dict.fromkeys((row.case, row.dtype) for row in rows):
        here = [row for row in rows if (row.case, row.dtype) == (case, dtype)]
        axis = case.rpartition("-")[2]
        same = {a: n for a, n in here[0].shape.items() if all(row.shape.get(a) == n for row in here)}
        points: dict[str, list[tuple[int, float]]] = {}
        for row in sorted(here, key=lambda row: row.shape[axis]):
            points.setdefault(row.provider, []).append((row.shape[axis], row.ms_median))
        rest = ", ".join([f"{a} = {n:,}" for a, n in same.items() if a != axis] + [dtype])
        made.append(Series(case, dtype, rest, points))
    return made


def worst(errors: Mapping[str, float]) -> float:
    """The largest error of what is no loss."""
    return max(error for name, error in errors.items() if name != "loss")
