from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
)

from fastft.data import Example, Objective
from fastft.trainer.evaluation import generate
from fastft.trainer.evaluation.assess import write_samples
from fastft.trainer.evaluation.generate import batches_of, complete, drawn, openings, rooms_left

from .conftest import MakeTrainer, printed

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def gpt2_dir(model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """With 32 positions."""
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), AutoTokenizer.from_pretrained(model_dir)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("patch", [True, False])
def test_completions_are_greedy(make_trainer: MakeTrainer, patch: bool) -> None:
    trainer = make_trainer(patch=patch)
    task = trainer.tasks[0]
    example = task.train.examples[1]
    [record] = complete(trainer.model, task.objective, [example], 5, CPU, nullcontext())
    ids = list(example.prompt_ids)
    trainer.model.eval()
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(trainer.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == trainer.tokenizer.eos_token_id:
            break
    written = trainer.tokenizer.decode(ids[len(example.prompt_ids) :], skip_special_tokens=True).strip()
    assert record["completion"] == written
    assert record["prompt"] == example.prompt
    assert record["reference"].startswith("the ")
    assert "colours.jsonl:" in record["origin"]


def test_a_completion_ends_at_the_end_token(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    model, tokenizer, task = trainer.model, trainer.tokenizer, trainer.tasks[0]
    objective, examples = task.objective, task.train.examples[:1]
    [full] = complete(model, objective, examples, 8, CPU, nullcontext())
    first = int(model(input_ids=torch.tensor([examples[0].prompt_ids])).logits[0, -1].argmax())
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    [ended] = complete(model, objective, examples, 8, CPU, nullcontext())
    assert ended["completion"] == tokenizer.decode([first]).strip()
    assert len(full["completion"]) > len(ended["completion"])


def test_plain_text_is_continued_from_its_first_quarter(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Tell me of the grass. The grass is green indeed.\n" * 20)
    trainer = make_trainer(train_data=str(text), max_length=32)
    task = trainer.tasks[0]
    found = openings(task.objective, task.train, 3)
    assert len(found) == 3
    for example in found:
        assert len(example.prompt_ids) == 8
        assert example.completion
    assert openings(task.objective, task.train, 0) == []


def test_prompts_in_a_batch_are_completed_as_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    task = trainer.tasks[0]
    examples = drawn(task.objective, task.train, 7)
    assert len({len(example.prompt_ids) for example in examples}) > 1
    alone = complete(trainer.model, task.objective, examples, 6, CPU, nullcontext())
    assert complete(trainer.model, task.objective, examples, 6, CPU, nullcontext(), batch_size=3) == alone
    assert [text["reference"].startswith("the ") for text in alone] == [True] * 7


def examples_of(lengths: list[int]) -> list[Example]:
    return [Example("", "", [5 + n % 50 for n in range(length)], f"f:{length}") for length in lengths]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_is_written_ends_with_the_positions_of_the_model(
    make_trainer: MakeTrainer, gpt2_dir: str, batch_size: int
) -> None:
    """GPT-2's are a table: behind its end there is nothing to look up."""
    trainer = make_trainer(model=gpt2_dir, max_length=32)
    objective = trainer.tasks[0].objective
    no_end = nothing_ends(trainer.model, objective)
    given = examples_of([31, 3, 40, 30, 32, 28, 30, 4])
    found = complete(no_end, objective, given, 8, CPU, nullcontext(), batch_size)
    lengths = {text["origin"]: len(objective.tokenizer(text["completion"]).input_ids) for text in found}
    assert [text["origin"] for text in found] == [f"f:{length}" for length in (31, 3, 30, 28, 30, 4)]
    assert lengths["f:31"] <= 1
    assert no_end.written == {3: 8, 4: 8, 28: 4, 30: 2, 31: 1}
    assert found == complete(no_end, objective, given, 8, CPU, nullcontext(), 1)
    assert complete(no_end, objective, examples_of([32, 33]), 8, CPU, nullcontext()) == []
    assert complete(no_end, objective, [], 8, CPU, nullcontext()) == []


def nothing_ends(model: Any, objective: Objective) -> Any:
    """The model, which notes how many tokens it writes behind prompts of each length and never ends before."""
    generate, model.written = model.generate, {}

    def noted(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        ids = generate(input_ids=input_ids, **{**options, "eos_token_id": None})
        for row, mask in zip(ids, options["attention_mask"], strict=True):
            model.written[int(mask.sum())] = len(row) - len(mask)
        return ids  # type: ignore[no-any-return]

    model.generate = noted
    return model


def test_an_encoder_decoder_writes_at_its_decoders_positions(tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=50, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=20,
    )  # fmt: skip
    assert rooms_left(BartForConditionalGeneration(config), examples_of([3, 19])) == [20, 20]
    config.is_encoder_decoder = False
    assert rooms_left(BartForCausalLM(config), examples_of([3, 19, 21])) == [17, 1, -1]


@given(lengths=st.lists(st.integers(1, 40), max_size=12), batch_size=st.integers(1, 5), limit=st.integers(1, 30))
def test_batches_hold_every_prompt_with_room_once(lengths: list[int], batch_size: int, limit: int) -> None:
    rooms = [min(limit, 32 - length) for length in lengths]
    made = list(batches_of(examples_of(lengths), rooms, batch_size))
    assert sorted(i for batch, _ in made for i in batch) == [i for i, room in enumerate(rooms) if room > 0]
    for batch, room in made:
        assert 1 <= len(batch) <= batch_size
        assert {rooms[i] for i in batch} == {room}


def test_a_run_goes_on_where_no_prompt_leaves_room(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(num_generations=2, eval_generations=2)
    monkeypatch.setattr(generate, "written_positions", lambda model: 1)
    assert write_samples(trainer, trainer.tasks[0].objective, trainer.tasks[0].train) == {}
    assert trainer.log.records == [{"step": 0, "generations": []}]
    assert "no prompt leaves the model a position to write at" in " ".join(printed(trainer).split())
