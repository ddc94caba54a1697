architectures: str
compact_tile: int
segment_chunk: int

def runtime_version() -> int: ...
def why_no_device() -> str | None: ...
def device_limits(device: int, /) -> tuple[int, int, int, int, int, int]: ...
def cross_entropy_float32(
    rows: int, vocab: int, logits: int, logits_stride: int, grad: int, grad_stride: int, target: int,
    coefficients: int, q: int, scale: float, softcap: float, stats: int, cluster: int, threads: int, cached: int,
    stream: int, /,
) -> None: ...  # fmt: skip

cross_entropy_bfloat16 = cross_entropy_float32
cross_entropy_float16 = cross_entropy_float32

def compact(
    n: int, target: int, ignore_index: int, counts: int, capacity: int, valid: int, count: int, stream: int, /
) -> None: ...
def gather_rows(
    rows: int, width: int, source: int, source_rows: int, source_stride: int, out: int, index: int, stream: int, /
) -> None: ...

scatter_rows = gather_rows

def grouping_scratch(n: int, bits: int, /) -> int: ...
def group(
    n: int, ids: int, bits: int, scratch: int, scratch_bytes: int, touched: int, order: int, ends: int, count: int,
    stream: int, /,
) -> None: ...  # fmt: skip
def segment_sum_float32(
    n: int, segments: int, width: int, values: int, stride: int, order: int, ends: int, partials: int, out: int,
    stream: int, /,
) -> None: ...  # fmt: skip

segment_sum_bfloat16 = segment_sum_float32
segment_sum_float16 = segment_sum_float32

def adamw_rows_float32(
    rows: int, width: int, ids: int, table: int, stride: int, last: int, slot: int, m: int, v: int, master: int,
    steps: int, until: int, leap: int, grad: int, out: int, scale: int, found_inf: int, beta1: float, beta2: float,
    eps: float, stream: int, /,
) -> None: ...  # fmt: skip

adamw_rows_bfloat16 = adamw_rows_float32
adamw_rows_float16 = adamw_rows_float32
