"""csrc/cuda compiled by nvcc for the architectures in CMakeLists.txt, and the module that it becomes."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastft import dispatch

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = re.findall(r"(?<=[\";])(\d+)(?=[-;\"])", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
KERNELS = {
    "cross_entropy_kernel": 12, "count_kernel": 1, "select_kernel": 1, "gather_kernel": 4, "scatter_kernel": 4,
    "chunk_sum_kernel": 6, "partial_sum_kernel": 2, "adamw_rows_kernel": 6, "make_pairs_kernel": 1,
    "count_ends_kernel": 1, "write_groups_kernel": 1,
}  # fmt: skip
CUB = {  # what one sort of pairs takes of CUB's own
    "DeviceRadixSortSingleTileKernel", "DeviceRadixSortHistogramKernel", "DeviceRadixSortExclusiveSumKernel",
    "DeviceRadixSortOnesweepKernel", "EmptyKernel",
}  # fmt: skip
REGISTERS = 64 * 1024  # of a multiprocessor
THREADS = {"cross_entropy_kernel": 1024}  # that tuning.py wants on one; the others are small


class Usage(NamedTuple):
    kernel: str
    registers: int
    local: int  # bytes of stack frame and spills


@pytest.fixture(scope="module")
def nvcc() -> str:
    path = shutil.which("nvcc")
    if path is None:
        pytest.skip("nvcc is not on PATH")
    return path


def compiled(nvcc: str, source: Path, *options: str) -> str:
    command = [nvcc, "-std=c++17", "-O3", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def usages(report: str) -> list[Usage]:
    found = []
    for part in report.split("Compiling entry function")[1:]:
        name = re.search(r"\d([a-z_]+_kernel|(?:Device|Empty)\w*?Kernel)", part)
        registers = re.search(r"Used (\d+) registers", part)
        local = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part)
        assert name, part
        assert registers, part
        assert len(local) == 3, part
        found.append(Usage(name[1], int(registers[1]), sum(map(int, local))))
    return found


def test_architectures_are_found() -> None:
    assert {"80", "90", "100"} <= set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills(architecture: str, nvcc: str, tmp_path: Path, record_property: Any) -> None:
    options = (f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "kernels.cubin"))
    found = [usage for source in SOURCES for usage in usages(compiled(nvcc, source, *options))]
    for kernel, count in KERNELS.items():
        mine = [usage for usage in found if usage.kernel == kernel]
        assert len(mine) == count, kernel
        print(f"sm_{architecture} {kernel}: registers {sorted(usage.registers for usage in mine)}")
        record_property(f"registers of {kernel}", max(usage.registers for usage in mine))
        assert [usage for usage in mine if usage.local] == []
        assert max(usage.registers for usage in mine) * THREADS.get(kernel, 0) <= REGISTERS
    cub = [usage for usage in found if usage.kernel not in KERNELS]
    assert sorted(usage.kernel for usage in cub) == sorted(CUB), "more than one sort, or another CUB"
    assert [usage for usage in cub if usage.local] == []


def test_memory_moves_16_bytes_at_a_time(nvcc: str, tmp_path: Path) -> None:
    """What g++ does not see of the kernels: each reads, copies and writes in vectors and reaches its cluster."""
    path = tmp_path / "cross_entropy.ptx"
    compiled(nvcc, ROOT / "csrc" / "cuda" / "cross_entropy.cu", "-arch=sm_90", "-ptx", "-o", str(path))
    kernels = path.read_text(encoding="utf-8").split(".entry")[1:]
    assert len(kernels) == KERNELS["cross_entropy_kernel"]
    for text in kernels:
        for wanted in (
            r"ld\.global\.v4", r"ld\.shared\.v4", r"st\.global\.v4", r"cp\.async\.cg\.shared\.global",
            r"cp\.async\.wait", r"ex2\.approx\.ftz", r"mapa\.", r"barrier\.cluster\.arrive", r"barrier\.cluster\.wait",
        ):  # fmt: skip
            assert re.search(wanted, text), wanted
        assert not re.search(r"(ld|st)\.local", text)


@pytest.mark.parametrize(("stem", "narrow_loads"), [("segment_sum", 0), ("row_update", 2 * 9 + 2)])
def test_aligned_rows_move_16_bytes_at_a_time(stem: str, narrow_loads: int, nvcc: str, tmp_path: Path) -> None:
    """Of floats only the 9 numbers of a leap, in two places, and 2 scalars are loaded one by one; none is stored so."""
    path = tmp_path / f"{stem}.ptx"
    compiled(nvcc, ROOT / "csrc" / "cuda" / f"{stem}.cu", "-arch=sm_90", "-ptx", "-o", str(path))
    kernels = path.read_text(encoding="utf-8").split(".entry")[1:]
    aligned = [text for text in kernels if not re.search(r"_kernelI.*?Li1E", text.partition("(")[0])]
    assert len(aligned) == len(kernels) // 2
    for text in aligned:
        assert len(re.findall(r"ld\.global\.(?:f32|u16|b16)", text)) <= narrow_loads
        assert not re.search(r"st\.global\.(f32|u16|b16)|(ld|st)\.local", text)
        assert re.search(r"ld\.global\.v4", text)
        assert re.search(r"st\.global\.v4", text)


@pytest.fixture
def library() -> Path:
    spec = find_spec("fastft._cuda")
    if spec is None or spec.origin is None:
        pytest.skip("fastft was built without nvcc")
    return Path(spec.origin)


def test_the_module_brings_its_runtime(library: Path) -> None:
    """It needs neither torch nor CUDA's runtime where it is loaded."""
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not on PATH")
    lines = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout.splitlines()
    needed = [line.split()[0] for line in lines]  # without the addresses, which may spell c10
    assert any("libc.so" in name for name in needed), needed
    assert not [name for name in needed if re.search("cudart|torch|c10|libcuda", name)], needed


def test_without_a_gpu_it_says_so(library: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(NotImplementedError, match="cuda: device is cpu"):
        dispatch.pick("cross_entropy", ("cuda",), "cuda", torch.zeros(1, 2))
    assert re.search("cuda: not usable: torch sees no NVIDIA GPU", dispatch.info())
