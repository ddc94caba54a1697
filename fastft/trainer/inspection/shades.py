"""Colours of an overview, as #rrggbb: legible on black and on white alike, so that a terminal's own do not matter.

Those of a terminal are of its 256, in which near ones would fall together.
"""

INK = "#000000"  # on any shade
DIM = ("#8a8a8a", "#6c6c6c")  # what is not learned: tokens in turn
SPECIAL_INK, SPECIAL = "#5f00af", "#af5fd7"  # special tokens: on a shade, and without one
TIERS = (  # up to this weight: shades of tokens in turn
    (0.75, ("#d7ffd7", "#afffaf")),
    (1.5, ("#87d787", "#5fd75f")),
    (float("inf"), ("#00af5f", "#00d787")),
)
PALE, FULL, STRONG = (0xDD, 0xF3, 0xDF), (0x86, 0xD9, 0x94), (0x2E, 0xB0, 0x50)  # weights near 0, 1, and 2 or more
ODD = 0.93  # of the brightness, for every other token


def tier(weight: float, odd: bool) -> str:
    """The background of a learned token on a terminal."""
    return next(pair for most, pair in TIERS if weight <= most)[odd]


def shade(weight: float, odd: bool) -> str:
    """The same on a page: the deeper, the higher the weight; every other token a little darker."""
    low, high, place = (PALE, FULL, weight) if weight <= 1 else (FULL, STRONG, min(weight - 1, 1.0))
    mixed = [(a + (b - a) * place) * (ODD if odd else 1) for a, b in zip(low, high, strict=True)]
    return "#" + "".join(f"{round(value):02x}" for value in mixed)
