"""cuda_shim.h reports what a kernel may not do: tests that pass on it would fail on a wrong kernel."""

import ctypes
import math
from pathlib import Path

from csrc.shimmed import FLAGS, HERE, run

FAULTS = {
    "barrier_in_a_branch": "not all threads reached",
    "shuffle_in_a_branch": "not all threads reached",
    "shuffle_with_a_part": "a part of its warp",
    "copy_not_waited_for": "did not wait for its copies",
    "misaligned_copy": "copies misaligned",
    "write_past_shared_memory": "outside of shared memory",
    "remote_before_start": "may not have started",
    "remote_after_end": "may have ended",
    "arrives_twice": "barrier twice",
    "does_not_wait": "did not wait there",
    "waits_without_arriving": "without having arrived",
}


def test_the_shim_reports_mistakes(compiler: str, tmp_path: Path) -> None:
    library = tmp_path / "faults.so"
    run(compiler, *FLAGS, "-shared", HERE / "cuda_shim_faults.cpp", "-o", library)
    functions = ctypes.CDLL(str(library))
    functions.last_seen.restype = ctypes.c_float
    for name, message in FAULTS.items():
        function = getattr(functions, f"run_{name}")
        function.restype = ctypes.c_char_p
        assert message in function().decode(), name
    for name in ("reads_a_copy_early", "reads_what_nothing_wrote"):
        getattr(functions, f"run_{name}")()
        assert math.isnan(functions.last_seen()), name
