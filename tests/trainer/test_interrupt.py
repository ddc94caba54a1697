import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastft.trainer.interrupt import StopRequest

from .conftest import MakeConfig, MakeTrainer, assert_same, printed, weights


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop
        assert stop.signal is number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with StopRequest() as stop:
                assert not stop
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


def test_a_stopped_run_resumes_to_the_same_end(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole = make_trainer(output_dir=str(tmp_path / "whole"), eval_fraction=0.2)
    whole.train()
    stopped = make_trainer(eval_fraction=0.2)
    stopped.optimizers[0].register_step_post_hook(
        lambda *_: signal.raise_signal(signal.SIGTERM) if stopped.state.step == 2 else None
    )
    report = stopped.train()
    assert (report.step, report.interrupted_by) == (3, "SIGTERM")
    assert report.eval_loss_after is None
    assert "stopped by SIGTERM after step 3" in printed(stopped)
    assert f"fastft train {stopped.config_file} --resume_from_checkpoint true" in printed(stopped)
    resumed = make_trainer(eval_fraction=0.2, resume_from_checkpoint=True)
    assert resumed.train().interrupted_by is None
    assert_same(weights(whole), weights(resumed))


def test_a_signal_before_the_first_step_saves_nothing(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(eval_fraction=0.2, per_device_eval_batch_size=1)
    trainer.model.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGINT) if not trainer.stop else None)
    report = trainer.train()
    assert (report.step, report.checkpoint, report.eval_loss_before) == (0, None, None)
    assert "stopped by SIGINT after step 0, nothing saved" in printed(trainer)


def test_a_process_ends_cleanly_on_sigint(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(max_steps=100_000, logging_steps=1, learning_rate=1e-5)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    command = [sys.executable, "-m", "fastft", "train", str(file)]
    log = Path(config.output_dir) / "log.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (log.exists() and log.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped by SIGINT after step" in out
    assert f"fastft train {config.output_dir}/config.yaml --resume_from_checkpoint true" in out
    assert "Traceback" not in err
    assert "Ctrl-C again" in err
    [saved] = Path(config.output_dir).glob("checkpoint-*")
    assert (saved / "manifest.json").exists()
