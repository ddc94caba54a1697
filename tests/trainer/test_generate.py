from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from fastft.trainer.generate import complete, drawn, openings

from .conftest import MakeTrainer

CPU = torch.device("cpu")


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
