"""One package per backend, one module per op; `fastft.dispatch` is the only reader."""
