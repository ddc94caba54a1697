import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastft.data import OBJECTIVES, Draw, Objective, load_corpus, make_objective
from fastft.data.objectives.encoder_decoder import EncoderDecoder
from fastft.hf.pretrained import load_outline
from fastft.trainer import DamagedCheckpoint
from fastft.trainer.arguments import parse_config
from fastft.trainer.saving.checkpoint import checkpoints, step_of
from fastft.trainer.saving.resume import FIXED, OF_LEARNING

from .conftest import RECORDS, MakeTrainer, assert_same, printed, weights, write_records


@pytest.mark.parametrize("cut", [1, 4, 5])
@pytest.mark.parametrize("patch", [True, False])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    make_trainer: MakeTrainer, tmp_path: Path, cut: int, patch: bool
) -> None:
    """With dropout, accumulation, grouping, warm-up and a decaying rate, across an epoch's end (4 steps each)."""
    options: dict[str, Any] = {
        "patch": patch, "group_by_length": True, "warmup_steps": 2, "lr_scheduler_type": "cosine",
        "weight_decay": 0.1, "save_steps": 1, "max_steps": 7,
    }  # fmt: skip
    whole = make_trainer(**options)
    report = whole.train()
    resumed = make_trainer(
        **options,
        output_dir=str(tmp_path / "resumed"),
        resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{cut}"),
    )
    assert resumed.state.step == cut
    again = resumed.train()
    assert_same(weights(whole), weights(resumed))
    for parameter, state in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert_same(whole.optimizers[0].state[parameter], resumed.optimizers[0].state[state])
    assert (again.tokens, again.supervised_tokens, again.train_loss) == (
        report.tokens, report.supervised_tokens, report.train_loss,
    )  # fmt: skip


def test_dropout_takes_part(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Otherwise the test above would show nothing about random numbers."""
    first, second = make_trainer(), make_trainer(output_dir=str(tmp_path / "second"))
    second.model.config.attention_dropout = 0.0
    for module in second.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    first.train_step()
    second.train_step()
    assert any(
        not (one == two).all() for one, two in zip(weights(first).values(), weights(second).values(), strict=True)
    )


def test_true_takes_the_newest_checkpoint_and_continues_the_log(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole = make_trainer(save_steps=2, eval_fraction=0.3, logging_steps=1)
    whole.train()
    records = [record for record in whole.log.records if "eval_loss" in record]
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    resumed = make_trainer(save_steps=2, eval_fraction=0.3, logging_steps=1, resume_from_checkpoint=True)
    assert resumed.start.checkpoint == tmp_path / "run" / "checkpoint-4"
    assert [record["step"] for record in resumed.log.having("loss")] == [1, 2, 3, 4]
    report = resumed.train()
    assert [record["step"] for record in resumed.log.having("loss")] == [1, 2, 3, 4, 5, 6]
    assert report.eval_loss_before == records[0]["eval_loss"]
    assert report.eval_loss_after == records[-1]["eval_loss"]
    assert "going on from" in printed(resumed)


def test_a_run_resumed_elsewhere_takes_its_log_along(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole = make_trainer(save_steps=2, eval_fraction=0.3, logging_steps=1)
    report = whole.train()
    checkpoint, other = str(tmp_path / "run" / "checkpoint-4"), str(tmp_path / "other")
    resumed = make_trainer(
        eval_fraction=0.3, logging_steps=1, output_dir=other, resume_from_checkpoint=checkpoint, save_steps=2
    )
    again = resumed.train()
    assert (again.eval_loss_before, again.eval_loss_after) == (report.eval_loss_before, report.eval_loss_after)
    kept = [record for record in resumed.log.having("loss") if record["step"] <= 4]
    assert kept == [record for record in whole.log.having("loss") if record["step"] <= 4]


def test_a_checkpoint_may_have_been_copied_to_another_name(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(save_steps=2).train()
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "kept")
    rest = make_trainer(output_dir=str(tmp_path / "rest"), resume_from_checkpoint=str(tmp_path / "kept"))
    assert rest.train().checkpoint == str(tmp_path / "rest" / "checkpoint-6")


def test_the_config_is_kept_beside_the_results(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    assert parse_config([str(trainer.config_file)]) == trainer.config


def test_a_damaged_newest_checkpoint_is_passed_over(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole = make_trainer(save_steps=2)
    whole.train()
    (tmp_path / "run" / "checkpoint-6" / "model.safetensors").write_bytes(b"torn")
    resumed = make_trainer(save_steps=2, resume_from_checkpoint=True)
    assert resumed.state.step == 4
    resumed.train()
    assert "passed over: " in printed(resumed)
    assert "model.safetensors has 4 bytes" in printed(resumed)
    assert_same(weights(whole), weights(resumed))
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [2, 4, 6]


def test_a_damaged_checkpoint_that_was_named_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(max_steps=2).train()
    torn = tmp_path / "run" / "checkpoint-2"
    (torn / "optimizer.safetensors").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"optimizer\.safetensors is missing"):
        make_trainer(output_dir=str(tmp_path / "other"), resume_from_checkpoint=str(torn))


def test_true_without_a_checkpoint_starts_afresh_and_says_so(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 2, "loss": 1.0}\n')  # killed before its first checkpoint
    trainer = make_trainer(max_steps=1, resume_from_checkpoint=True)
    trainer.train()
    assert "starting at step 0" in printed(trainer)
    assert [record["step"] for record in trainer.log.having("loss")] == [1]


def test_a_finished_run_resumed_takes_no_step(make_trainer: MakeTrainer) -> None:
    make_trainer().train()
    resumed = make_trainer(resume_from_checkpoint=True)
    before = weights(resumed)
    assert resumed.train().step == 6
    assert_same(before, weights(resumed))


def test_a_longer_run_can_be_resumed_and_says_what_changed(make_trainer: MakeTrainer) -> None:
    make_trainer().train()
    resumed = make_trainer(resume_from_checkpoint=True, max_steps=8, learning_rate=1e-3)
    assert resumed.train().step == 8
    assert "max_steps was 6, is 8" in printed(resumed)
    assert "learning_rate was 0.003, is 0.001" in printed(resumed)


def test_a_folder_in_use_is_refused_before_anything_is_loaded(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(max_steps=1).train()
    with pytest.raises(FileExistsError, match=r"not empty.*--resume_from_checkpoint true.*another --output_dir"):
        make_trainer(model="there is no such model")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileExistsError, match="is a file"):
        make_trainer(output_dir=str(file))


def test_a_folder_that_cannot_be_written(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="cannot be written"):
        make_trainer(output_dir=str(tmp_path / "locked"))
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"cannot be made \(Not a directory\)"):
        make_trainer(output_dir=str(tmp_path / "file" / "run"))


def test_a_named_checkpoint_must_exist(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint-9 not found"):
        make_trainer(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_later_checkpoints_of_another_course_are_not_mixed_in(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(save_steps=2).train()
    with pytest.raises(ValueError, match="already holds checkpoint-4, checkpoint-6"):
        make_trainer(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


@pytest.mark.parametrize(
    "change",
    [{"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 1}, {"seed": 1}, {"group_by_length": True}],
)
def test_another_course_through_the_data_is_refused(make_trainer: MakeTrainer, change: dict[str, Any]) -> None:
    make_trainer(max_steps=2).train()
    [name] = change
    with pytest.raises(
        ValueError, match=rf"another model or course through the data: .*{name}.* (is|has) {change[name]}"
    ):
        make_trainer(max_steps=4, resume_from_checkpoint=True, **change)


def test_other_data_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    write_records(data, RECORDS)
    make_trainer(max_steps=2, train_data=str(data)).train()
    write_records(data, [*RECORDS[1:], RECORDS[0]])
    with pytest.raises(ValueError, match="the data itself has changed"):
        make_trainer(max_steps=4, train_data=str(data), resume_from_checkpoint=True)
    write_records(data, RECORDS)
    with pytest.raises(ValueError, match="max_length was 64, is 12"):
        make_trainer(max_steps=4, train_data=str(data), resume_from_checkpoint=True, max_length=12, on_empty="drop")
    moved = tmp_path / "moved.jsonl"
    data.rename(moved)
    assert make_trainer(max_steps=4, train_data=str(moved), resume_from_checkpoint=True).state.step == 2


def test_rows_of_another_length_are_another_course(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    for packing in (False, True):
        output = str(tmp_path / str(packing))
        make_trainer(max_steps=2, packing=packing, output_dir=output).train()
        options: dict[str, Any] = {
            "max_steps": 4, "packing": packing, "output_dir": output, "resume_from_checkpoint": True, "max_length": 63,
        }  # fmt: skip
        if packing:
            with pytest.raises(ValueError, match="course through the data: max_length was 64, is 63"):
                make_trainer(**options)
        else:
            assert make_trainer(**options).state.step == 2


def stages(*steps: int, **changes: Any) -> dict[str, Any]:
    return {"max_steps": -1, "stages": [{"steps": number} for number in steps], **changes}


def test_stages_behind_the_checkpoint_may_change(make_trainer: MakeTrainer) -> None:
    make_trainer(**stages(2, 2)).train()
    resumed = make_trainer(resume_from_checkpoint=True, **stages(2, 3, 1))
    assert "stages was [{'steps': 2}, {'steps': 2}], is [{'steps': 2}, {'steps': 3}" in " ".join(resumed.describe())
    assert resumed.train().step == 6


def test_stages_before_the_checkpoint_may_not(
    make_trainer: MakeTrainer, bert_dir: str, documents: str, tmp_path: Path
) -> None:
    own = [{"objective": "mlm"}, {"objective": "clm"}]
    options: dict[str, Any] = {
        "model": bert_dir, "train_data": documents, "tasks": own, "max_length": 48, "max_steps": -1, "save_steps": 3,
    }  # fmt: skip
    first = {"steps": 3, "tasks": ["mlm"]}
    make_trainer(**options, stages=[first, {"steps": 1}]).train()
    options |= {"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-3"), "output_dir": str(tmp_path / "b")}
    for refused in ([{"steps": 6}], [{"steps": 2, "tasks": ["mlm"]}, {"steps": 2, "tasks": ["clm"]}]):
        with pytest.raises(ValueError, match="and only what follows step 3 may change"):
            make_trainer(**options, stages=refused)
    resumed = make_trainer(**options, stages=[first, {"steps": 2, "tasks": ["clm"], "restart": True}])
    assert resumed.train().step == 5


ALTERNATIVES: dict[str, Any] = {
    "max_length": 50, "max_target_length": 6, "mlm_probability": 0.6, "mlm_eval_probability": 0.9,
    "mask_replace_prob": 0.3, "random_replace_prob": 0.2, "mlm_masking": "token", "mlm_span_length": 1.2,
    "mlm_weight": 0.5, "nsp_probability": 0.9, "noise_density": 0.5, "mean_noise_span_length": 1.5,
    "sentinel": "<extra_id_1{}>", "ul2_weights": [0.0, 1.0, 0.0], "ul2_mode_tokens": ["a", "b", "c"],
}  # fmt: skip


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_what_batches_are_made_with_is_fixed(
    name: str, bert_dir: str, t5_dir: str, documents: str, data_file: str
) -> None:
    """Each option with another value: if the same samples make another batch, a resumed run must keep it."""
    kind = OBJECTIVES[name]
    outline, tokenizer = load_outline(t5_dir if issubclass(kind, EncoderDecoder) else bert_dir, kind.auto_class)
    base = {"max_length": 64, "mlm_masking": "span"}

    def objective(**changes: Any) -> Objective:
        made = make_objective(name, tokenizer, base | changes)
        if isinstance(made, EncoderDecoder):
            made.prepare(outline)
        return made

    source = data_file if name == "seq2seq" else documents
    samples = load_corpus(source, tokenizer, objective=objective(), on_empty="drop", cache=False).samples
    rows = [[index] for index in range(len(samples))]

    def batches(**changes: Any) -> list[Any]:
        made = objective(**changes)
        found = [made.batch(samples, rows, Draw(0, epoch)) for epoch in (0, 1)]
        learned = [[(t.labels, t.scale * t.weights) for t in batch.targets] for batch in found]
        return [[*batch.inputs.values(), *sum(pairs, ())] for batch, pairs in zip(found, learned, strict=True)]

    options = {field.name for field in dataclasses.fields(kind)} - {"tokenizer"}
    usual = batches()
    read = {option for option in options if not same(usual, batches(**{option: ALTERNATIVES[option]}))}
    assert read <= set(FIXED)
    assert set(kind.batch_options) <= {*FIXED, "mlm_eval_probability"}
    assert "mlm_eval_probability" in OF_LEARNING  # read in evaluations only: allowed, and said
    assert read or not kind.batch_options


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )
