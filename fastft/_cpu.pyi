def instruction_set() -> str: ...
def advise_huge_pages(data: int, bytes: int, /) -> bool: ...
def cross_entropy_float32(
    rows: int, vocab: int, logits: int, logits_stride: int, grad: int, grad_stride: int, target: int,
    coefficients: int, q: int, scale: float, softcap: float, stats: int, threads: int, /,
) -> None: ...  # fmt: skip

cross_entropy_bfloat16 = cross_entropy_float32
cross_entropy_float16 = cross_entropy_float32

def first_outside(ids: int, n: int, rows: int, /) -> int: ...
def group(n: int, ids: int, out: int, /) -> int: ...
def assign_slots(slot: int, ids: int, n: int, used: int, /) -> int: ...
def advance_leaps(
    beta1: float, beta2: float, before: int, count: int, reach: int, moments: int, departures: int, shrink: float,
    lr: float, /,
) -> None: ...  # fmt: skip
def segment_sum_float32(
    segments: int, width: int, values: int, stride: int, order: int, ends: int, out: int, threads: int, /
) -> None: ...

segment_sum_bfloat16 = segment_sum_float32
segment_sum_float16 = segment_sum_float32

def adamw_rows_float32(
    rows: int, width: int, ids: int, table: int, stride: int, last: int, slot: int, m: int, v: int, filled: int,
    master: int, steps: int, until: int, departures: int, grad: int, out: int, order: int, ends: int, scale: int,
    found_inf: int, beta1: float, beta2: float, eps: float, threads: int, /,
) -> None: ...  # fmt: skip

adamw_rows_bfloat16 = adamw_rows_float32
adamw_rows_float16 = adamw_rows_float32
