"""The package as it is installed: types of the native modules, one version, an import that is cheap, the licence."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import fastft

PACKAGE = Path(fastft.__file__).parent
ROOT = Path(__file__).parents[1]
BINDINGS = ROOT / "csrc" / "bindings"
NATIVE = ("_cpu", "_cuda")
IMPORT_SECONDS = 0.2
# Packages that a user may not have, or that take longer to import than fastft may.
HEAVY = ("transformers", "triton", "peft", "datasets", "matplotlib", "rich", "jsonargparse", "yaml", "pyarrow")


# Types


def stub(name: str) -> dict[str, ast.FunctionDef | ast.expr]:
    """What a stub declares: functions, and annotations of attributes. `b = a` declares b as a is."""
    declared: dict[str, ast.FunctionDef | ast.expr] = {}
    for node in ast.parse((PACKAGE / f"{name}.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            declared[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            declared[ast.unparse(node.target)] = node.annotation
        else:
            assert isinstance(node, ast.Assign), ast.unparse(node)
            declared[ast.unparse(node.targets[0])] = declared[ast.unparse(node.value)]
    return declared


def built(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"fastft.{name}")
    except ModuleNotFoundError as error:
        if name == "_cpu":
            raise
        pytest.skip(f"{error}: fastft was built without nvcc, or with FASTFT_CUDA=OFF")


def plain(annotation: str) -> str:
    """pybind11's words for a type, as of 2.13 or of 3.1, in those of a stub."""
    return {"SupportsInt": "int", "SupportsFloat": "float"}.get(
        annotation.split("|")[0].strip().removeprefix("typing."), annotation.strip()
    )


def in_words(function: ast.FunctionDef) -> tuple[list[str], str]:
    """Types of the parameters, and of what is returned; a `char*` may be null, which pybind11 does not say."""
    assert function.returns is not None
    annotations = [ast.unparse(argument.annotation or ast.Constant(None)) for argument in function.args.posonlyargs]
    return annotations, ast.unparse(function.returns).removesuffix(" | None")


@pytest.mark.parametrize("name", NATIVE)
def test_a_stub_declares_what_the_module_exports(name: str) -> None:
    module, declared = built(name), stub(name)
    assert {attribute for attribute in dir(module) if not attribute.startswith("__")} == declared.keys()
    for attribute, what in declared.items():
        value = getattr(module, attribute)
        if not isinstance(what, ast.FunctionDef):
            assert type(value).__name__ == ast.unparse(what), attribute
            continue
        signature = re.fullmatch(rf"{attribute}\((.*)\) -> (.*)", str(inspect.getdoc(value)).strip())
        assert signature, inspect.getdoc(value)
        wanted = [plain(part.split(":", 1)[1]) for part in signature[1].split(", ") if part]
        assert in_words(what) == (wanted, plain(signature[2])), attribute


@pytest.mark.parametrize("name", NATIVE)
def test_functions_of_a_stub_take_arguments_by_position(name: str) -> None:
    """As the modules do: pybind11 is told no names."""
    functions = [what for what in stub(name).values() if isinstance(what, ast.FunctionDef)]
    assert functions
    assert not [f.name for f in functions if f.args.args or f.args.kwonlyargs or f.args.vararg or f.args.kwarg]


@pytest.mark.parametrize("name", NATIVE)
def test_a_stub_declares_what_the_source_defines(name: str) -> None:
    """So that the stub of a module is held to something where the module is not built."""
    source = BINDINGS / f"{name.removeprefix('_')}.cpp"
    if not source.exists():
        pytest.skip(f"{source} is not there: these are tests of an installed package")
    defined = re.findall(r'm\.(?:def|attr)\("(\w+)"', source.read_text(encoding="utf-8"))
    assert sorted(defined) == sorted(stub(name))


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


# One version, and what is said of the package


def test_the_version_is_written_in_one_place() -> None:
    assert fastft.__version__ == metadata.version("fastft"), "install it again: `make test` does"
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", fastft.__version__)
    written = [PACKAGE / "__init__.py", ROOT / "pyproject.toml", ROOT / "CMakeLists.txt"]
    text = "".join(path.read_text(encoding="utf-8") for path in written if path.exists())
    assert text.count(f'"{fastft.__version__}"') == 1


def test_the_licence_is_whole_and_goes_with_the_package() -> None:
    found = metadata.metadata("fastft")
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]
    licence = metadata.distribution("fastft").read_text("licenses/LICENSE")
    assert licence is not None
    assert re.findall(r"^ +(\d)\. [A-Z]", licence, re.MULTILINE) == [*"123456789"]
    assert "APPENDIX: How to apply the Apache License to your work." in licence
    assert re.search(r"Copyright 20\d\d the fastft authors", licence)


# Import


def test_import_is_quick_and_brings_nothing_heavy() -> None:
    """Beyond `import torch`, in a new process, the best of several; nothing of CUDA is started by it."""
    program = (
        "import sys, time, torch; known = set(sys.modules); start = time.perf_counter(); import fastft; "
        "taken = time.perf_counter() - start; assert not torch.cuda.is_initialized(); "
        f"heavy = {HEAVY!r}; print(taken, *sorted(set(heavy) & (set(sys.modules) - known)))"
    )
    taken: list[float] = []
    while len(taken) < 5 and (len(taken) < 2 or min(taken) >= IMPORT_SECONDS):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds, *heavy = done.stdout.split()
        assert not heavy
        taken.append(float(seconds))
    print(f"import fastft takes {min(taken):.3f} s beyond torch")
    assert min(taken) < IMPORT_SECONDS
