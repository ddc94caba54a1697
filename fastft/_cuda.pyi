architectures: str
compact_tile: int

def runtime_version() -> int: ...
def why_no_device() -> str | None: ...
def device_limits(device: int) -> tuple[int, int, int, int, int, int]: ...
def cross_entropy_float32(
    rows: int, vocab: int, logits: int, logits_stride: int, grad: int, grad_stride: int, target: int,
    coefficients: int, q: int, scale: float, softcap: float, stats: int, cluster: int, threads: int, cached: int,
    stream: int,
) -> None: ...  # fmt: skip

cross_entropy_bfloat16 = cross_entropy_float32
cross_entropy_float16 = cross_entropy_float32

def compact(
    n: int, target: int, ignore_index: int, counts: int, capacity: int, valid: int, count: int, stream: int
) -> None: ...
def gather_rows(
    rows: int, width: int, source: int, source_rows: int, source_stride: int, out: int, index: int, stream: int
) -> None: ...

scatter_rows = gather_rows
