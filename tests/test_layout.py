"""The rules of layout: what may import what, where a word may stand, how long a file may be, what the README maps."""

import ast
import importlib
import inspect
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fastft
from fastft import _cpu

ROOT = Path(__file__).parents[1]
CODE = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh"}
LONGEST = 400
REFERENCE_LINES = 30

# A module imports from lower ranks and from its own package. Kernels are apart: dispatch finds them by name.
RANKS = {
    "__main__": 5,
    "trainer": 4,
    "": 3,
    "data": 2,
    "hf": 2,
    "embedding": 2,
    "optim": 1,
    "losses": 1,
    "cache": 0,
    "dispatch": 0,
    "memory": 0,
}
IMPORTS_INSIDE_FUNCTIONS = {"fastft/dispatch.py", "bench/peers.py"}
TRANSFORMERS = ("fastft/hf/", "fastft/data/")
# Ops that a benchmark measures together.
JOBS = dict.fromkeys(("grouping", "leap", "row_update", "segment_sum", "slots"), "embedding")
MATH_INCLUDES = {"cmath", "cstdint"}


@cache
def files() -> tuple[str, ...]:
    """What git tracks or would track, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return tuple(sorted(name for name in set(done.stdout.splitlines()) if (ROOT / name).is_file()))


def under(*folders: str, suffixes: set[str] = CODE) -> list[str]:
    return [name for name in files() if name.startswith(folders) and Path(name).suffix in suffixes]


@cache
def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(text(name), name)


def without_comments(name: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text(name), flags=re.DOTALL)


def found(pattern: str, names: list[str], *, code_only: bool = False) -> list[str]:
    """`file: match` for each file that has one."""
    hits = []
    for name in names:
        if match := re.search(pattern, without_comments(name) if code_only else text(name)):
            hits.append(f"{name}: {match[0].strip()}")
    return hits


# Python: who imports whom


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def modules() -> dict[str, str]:
    return {module_of(name): name for name in under("fastft/", suffixes={".py"})}


def imports(name: str) -> Iterator[str]:
    """Modules that a file imports, anywhere in it; `from package import submodule` is an import of the submodule."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                native = whole in ("fastft._cpu", "fastft._cuda")
                yield whole if whole in modules() or native else node.module


def own_imports(name: str) -> set[str]:
    return {module for module in imports(name) if module.split(".")[0] == "fastft"} - {module_of(name)}


def package(module: str) -> str:
    return [*module.split("."), ""][1]


def test_imports_run_one_way() -> None:
    wrong = []
    for module, name in modules().items():
        for imported in own_imports(name):
            mine, theirs = package(module), package(imported)
            if mine == "kernels":
                backend = ".".join(module.split(".")[:3])
                allowed = imported in ("fastft._cpu", "fastft._cuda") or (imported + ".").startswith(backend + ".")
            else:
                allowed = mine == theirs or RANKS.get(mine, -1) > RANKS.get(theirs, 99)
            if not allowed:
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_every_package_has_a_rank() -> None:
    assert {package(module) for module in modules()} <= {*RANKS, "kernels"}


def test_no_import_cycles() -> None:
    graph = {module: own_imports(name) & modules().keys() for module, name in modules().items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_imports_inside_functions() -> None:
    wrong = []
    for name in set(under("fastft/", "bench/", "tests/", suffixes={".py"})) - IMPORTS_INSIDE_FUNCTIONS:
        for function in ast.walk(tree(name)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
                wrong += [f"{name}:{node.lineno}" for node in inner]
    wrong += found(r"\bimport_module\(|__import__\(", [n for n in modules().values() if n != "fastft/dispatch.py"])
    assert not wrong


def test_no_side_effects_at_import() -> None:
    """At module level a bare call only registers something with an op."""
    wrong = []
    for name in modules().values():
        for node in tree(name).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                function = node.value.func
                if not (isinstance(function, ast.Attribute) and function.attr.startswith("register_")):
                    wrong.append(f"{name}:{node.lineno}: {ast.unparse(node.value)}")
            elif isinstance(node, (ast.For, ast.While, ast.With, ast.Assert, ast.Delete)):
                wrong.append(f"{name}:{node.lineno}: {type(node).__name__}")
    assert not wrong


def test_transformers_stays_in_two_folders() -> None:
    wrong = [
        name
        for name in modules().values()
        if not name.startswith(TRANSFORMERS)
        and any(module.split(".")[0] in ("transformers", "tokenizers", "peft") for module in imports(name))
    ]
    assert not wrong


# Files


def test_no_file_is_long() -> None:
    long = {name: len(text(name).splitlines()) for name in under("") if len(text(name).splitlines()) > LONGEST}
    assert not long


def test_names_say_what_is_inside() -> None:
    vague = {"util", "utils", "common", "misc", "helper", "helpers", "stuff"}
    assert not [name for name in files() if vague & {Path(part).stem for part in Path(name).parts}]


def test_nothing_of_this_machine_and_nothing_unfinished() -> None:
    """Patterns are in pieces so that they do not find themselves."""
    texts = [name for name in files() if Path(name).suffix not in {".png", ".gz", ".bin", ".safetensors"}]
    home = "|".join(("/wo" + "rk/", "/ro" + "ot/", "/ho" + r"me/\w", "/Us" + "ers/", r"\bC:\\\\"))
    unfinished = "|".join("TO-DO FIX-ME XX-X HA-CK".replace("-", "").split())
    assert not found(home, texts)
    assert not found(rf"\b({unfinished})\b", texts)


# C++


def test_native_code_knows_no_torch_and_no_python() -> None:
    native = under("csrc/math/", "csrc/cpu/", "csrc/cuda/")
    assert native
    assert not found(r'#include\s*[<"](torch|ATen|c10|pybind11|Python\.h)[^>"]*', native)


def test_bindings_use_the_others_and_the_others_only_math() -> None:
    wrong = []
    for name in under("csrc/"):
        folder = Path(name).parts[1]
        for bracket, header in re.findall(r'#include\s*([<"])([^>"]+)', text(name)):
            other = Path(header).parts[1] if header.startswith("../") else folder
            allowed = {"bindings": {"bindings", "cpu", "cuda", "math"}, "math": {"math"}}.get(folder, {folder, "math"})
            if bracket == '"' and other not in allowed:
                wrong.append(f"{name}: {header}")
            elif bracket == "<" and folder == "math" and header not in MATH_INCLUDES:
                wrong.append(f"{name}: <{header}>")
    assert not wrong


def test_instruction_sets_are_mentioned_in_one_file() -> None:
    words = r"(?i)\b(avx\w*|sse\d\w*|immintrin|x86-64-v\d|target_clones|_mm\d*_\w+|__m(128|256|512)\w*|-m(arch|tune)\b)"
    names = [name for name in under("csrc/", "fastft/") if name != "csrc/cpu/isa.h"]
    assert not found(words, [*names, "CMakeLists.txt"])


def test_threads_are_mentioned_in_one_file() -> None:
    names = [name for name in under("csrc/") if name != "csrc/cpu/parallel.h"]
    assert not found(
        r"omp\s+parallel|omp_\w+\(|std::j?thread|std::async|pthread_|#include\s*<(thread|omp\.h|pthread\.h)>", names
    )


def test_row_maths_is_in_one_folder() -> None:
    """Exponentials, logarithms and hyperbolic tangents are called in csrc/math alone."""
    names = under("csrc/cpu/", "csrc/cuda/", "csrc/bindings/")
    assert not found(r"(?<![\w:.])(std::|::)?_*(exp|exp2|expm1|log|log2|log1p|tanh)f?\s*\(", names, code_only=True)


@pytest.mark.parametrize("native", ["_cpu", "_cuda"])
def test_native_modules_link_no_torch_and_no_cuda_runtime(native: str) -> None:
    """So that one wheel serves every torch."""
    paths = list(Path(_cpu.__file__).parent.glob(f"{native}.*"))
    if not paths and native == "_cuda":
        pytest.skip("_cuda is not built here: no CUDA compiler, or FASTFT_CUDA=OFF")
    for path in paths:
        assert not re.search(rb"lib(torch|c10|cudart)[\w-]*\.(so|dylib)|(torch|c10|cudart)\w*\.dll", path.read_bytes())


# One op, one stem


def defines(name: str, function: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree(name).body)


def ops() -> dict[str, set[str]]:
    """Ops and the backends that have them: modules of kernels that say why not."""
    backends: dict[str, set[str]] = {}
    for name in under("fastft/kernels/", suffixes={".py"}):
        if defines(name, "why_not"):
            backends.setdefault(Path(name).stem, set()).add(Path(name).parent.name)
    return backends


def test_an_op_has_the_same_stem_everywhere() -> None:
    assert "cross_entropy" in ops()
    benches = [Path(name).stem for name in under("bench/", suffixes={".py"})]
    missing = []
    for op, backends in ops().items():
        wanted = {f"fastft/kernels/reference/{op}.py", f"tests/kernels/test_{op}.py"}
        wanted |= {f"csrc/cpu/{op}.{suffix}" for suffix in ("h", "cpp") if "cpu" in backends}
        wanted |= {f"csrc/cuda/{op}.{suffix}" for suffix in ("h", "cu") if "cuda" in backends}
        missing += sorted(wanted - set(files()))
        if not any(stem == JOBS.get(op, op) or stem.endswith(f"_{op}") for stem in benches):
            missing.append(f"bench/{JOBS.get(op, op)}.py")
    assert not missing


def test_every_file_of_losses_and_math_has_its_test() -> None:
    """`schedule` is tested with `linear_cross_entropy`, whose schedule it is; `hd.h` has nothing but a macro."""
    wanted = {f"tests/losses/test_{Path(n).stem}.py" for n in under("fastft/losses/") if "__init__" not in n}
    wanted |= {f"tests/csrc/test_{Path(n).stem}.py" for n in under("csrc/math/")}
    without = {"tests/losses/test_schedule.py", "tests/csrc/test_hd.py"}
    assert not wanted - without - set(files())


def code_lines(name: str) -> int:
    """Lines with code: no docstring, no comment, nothing blank."""
    documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
    docstrings: set[int] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text(name).splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in docstrings for i, line in lines)


def test_references_are_short() -> None:
    names = [f"fastft/kernels/reference/{op}.py" for op in ops()]
    assert not {name: code_lines(name) for name in names if code_lines(name) > REFERENCE_LINES}


# What users see


def test_the_front_page_is_short() -> None:
    assert len(text("fastft/__init__.py").splitlines()) <= 40
    assert {"info", "patch", "unpatch"} <= set(fastft.__all__)


def public() -> Iterator[tuple[str, object]]:
    for module, name in modules().items():
        if name.endswith("__init__.py") and re.search(r"^__all__ =", text(name), re.MULTILINE):
            loaded = importlib.import_module(module)
            yield from ((f"{module}.{attribute}", getattr(loaded, attribute)) for attribute in loaded.__all__)


def test_public_names_are_documented() -> None:
    """A class's docstring is its own, and not one that Python or a base made up."""
    undocumented = []
    for name, value in public():
        if inspect.isclass(value):
            documented = bool(value.__dict__.get("__doc__")) and not str(value.__doc__).startswith(f"{value.__name__}(")
        else:
            documented = not callable(value) or bool(inspect.getdoc(value))
        if not documented:
            undocumented.append(name)
    assert not undocumented


def test_every_module_is_documented() -> None:
    assert not [name for name in modules().values() if not ast.get_docstring(tree(name))]


def test_readme_maps_every_file() -> None:
    """A fenced block under "File map": `path  description` for a file, or for a folder of tests/ or bench/results/."""
    block = re.search(r"^#+ File map\s*\n.*?```\w*\n(.*?)```", text("README.md"), re.DOTALL | re.MULTILINE)
    assert block, "README.md has no fenced block under a heading 'File map'"
    rows = [re.match(r"(\S+)(?:\s{2,}(\S.*))?$", line.strip()) for line in block[1].splitlines() if line.strip()]
    listed = {row[1]: row[2] for row in rows if row}
    assert len(listed) == len(rows), "a path is listed twice, or a line is not `path  description`"
    assert not [path for path, description in listed.items() if not description], "paths without a description"
    folders = tuple(path for path in listed if path.endswith("/"))
    assert all(folder.startswith(("tests/", "bench/results/")) for folder in folders)
    assert not [path for path in listed if path not in folders and path not in files()], "listed, but not there"
    assert not [folder for folder in folders if not any(name.startswith(folder) for name in files())]
    quiet = {name for name in files() if name.endswith("__init__.py") and name != "fastft/__init__.py"}
    sources = set(under("fastft/", "csrc/", "bench/", "tests/")) - quiet
    missing = sorted(name for name in sources if name not in listed and not name.startswith(folders or ("\0",)))
    assert not missing, "not in README's file map"
