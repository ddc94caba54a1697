"""Samples that share a row, so that little of it is padding: best fit, longest first."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of sample indices whose lengths sum to at most `capacity`; each sample is in exactly one.

    Best-fit decreasing: samples from long to short, each into the row that it leaves the least room in. A pure function
    of the lengths. Takes O(n log n) for the order, and per sample a few operations on an integer of `capacity` bits.

    Raises:
        ValueError: a sample is longer than a row.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room left: rows with that much
    rooms = 0  # bit r is set where there is a row with room r
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"packing: sample {index} has {length} tokens, a row {capacity}; lower max_length")
        fitting = rooms >> length
        if length and fitting:
            room = length + ((fitting & -fitting).bit_length() - 1)
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            rows[row].append(index)
        else:
            room, row = capacity, len(rows)
            rows.append([index])
        left = room - length
        if left:
            by_room.setdefault(left, []).append(row)
            rooms |= 1 << left
    return rows
