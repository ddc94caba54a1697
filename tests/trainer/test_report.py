import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from fastft.trainer.reporting.measure import Cost, HeadCost
from fastft.trainer.reporting.rendering import render
from fastft.trainer.reporting.report import Generation, Report

from .conftest import MakeTrainer

HEAD = HeadCost(2000, 200, 49152, Cost(0.2, 100 << 20), Cost(1.0, 400 << 20))


def shown(report: Report) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(render(report))
    return file.getvalue()


def finished(make_trainer: MakeTrainer, **changes: Any) -> Report:
    return make_trainer(eval_fraction=0.2, num_generations=2, generation_max_new_tokens=4, **changes).train()


def test_says_everything_in_words(make_trainer: MakeTrainer) -> None:
    report = finished(make_trainer)
    text = shown(dataclasses.replace(report, head=HEAD))
    assert report.eval_loss_before is not None
    for fact in (
        f"{report.eval_loss_before:.4f} (perplexity {report.perplexity_before:.2f}) -> {report.eval_loss_after:.4f}",
        f"{report.supervised_share:.1%} ({report.supervised_tokens:,} of {report.tokens:,} tokens seen)",
        "6 of 6 (1.50 epochs)",
        "unfused takes 5.0 x the time and 4.0 x the memory",
        "200 ms forward and backward, 100 MiB",
        str(report.checkpoint),
        report.plot,
        "before training",
        "after training",
        report.generations[0].reference,
    ):
        assert fact in text, fact


def test_json_holds_every_field_and_rate(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    report = finished(make_trainer)
    written = json.loads((tmp_path / "run" / "report.json").read_text())
    assert written == json.loads(
        json.dumps(
            dataclasses.asdict(report)
            | {"supervised_share": report.supervised_share, "tokens_per_second": report.tokens_per_second}
            | {"supervised_tokens_per_second": report.supervised_tokens_per_second}
        )
    )
    assert f"{report.eval_loss_after:.4f}" in (tmp_path / "run" / "report.txt").read_text()


def test_generations_join_before_and_after_by_prompt(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(eval_fraction=0.2, num_generations=2, generation_max_new_tokens=4)
    generations = trainer.train().generations
    first, last = trainer.log.having("generations")
    assert [g.before for g in generations] == [record["completion"] for record in first["generations"]]
    assert [g.after for g in generations] == [record["completion"] for record in last["generations"]]


def test_text_of_others_is_shown_as_it_is(make_trainer: MakeTrainer) -> None:
    odd = Generation("f[red]:1", "\n".join(f"line {n} [bold]" for n in range(99)), "[/x]", None, ":smile: \\")
    text = shown(dataclasses.replace(finished(make_trainer), generations=[odd]))
    assert "[/x]" in text
    assert ":smile: \\" in text
    assert "line 98 [bold]" in text
    assert "line 1 " not in text
    assert "before training" not in text


def test_without_held_out_data_and_out_of_memory(make_trainer: MakeTrainer) -> None:
    report = make_trainer().train()
    text = shown(dataclasses.replace(report, head=dataclasses.replace(HEAD, unfused=Cost(None, None))))
    assert "evaluation loss" not in text
    assert "out of memory" in text
    assert "unfused takes" not in text
