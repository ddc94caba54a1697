def instruction_set() -> str: ...
def advise_huge_pages(data: int, bytes: int) -> bool: ...
def cross_entropy_float32(
    rows: int, vocab: int, logits: int, logits_stride: int, grad: int, grad_stride: int, target: int,
    coefficients: int, q: int, scale: float, softcap: float, stats: int, threads: int,
) -> None: ...  # fmt: skip

cross_entropy_bfloat16 = cross_entropy_float32
cross_entropy_float16 = cross_entropy_float32
