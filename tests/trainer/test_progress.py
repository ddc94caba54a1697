import io

from rich.console import Console

from fastft.trainer.reporting.progress import Progress


def run(terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=90, legacy_windows=False)
    with Progress(console, total=10, done=4) as progress:
        progress.step(2.5, 3.0)
        progress.step(2.25, 5.0)
        with progress.subtask("evaluate") as subtask:
            subtask.update(1, 3)
        assert subtask.seconds >= 0
        progress.say("step 6 [bold]as it is[/bold] " + "x" * 100)
    return file.getvalue()


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    shown = run(terminal=True)
    assert "6/10" in shown
    assert "loss 2.2500" in shown
    assert "0:00:16 left" in shown  # 4 steps at 4 s


def test_a_file_gets_plain_lines_only() -> None:
    assert run(terminal=False) == "step 6 [bold]as it is[/bold] " + "x" * 100 + "\n"


def test_time_left_before_the_first_step() -> None:
    assert Progress(Console(file=io.StringIO()), 5, 0).left() == "0:00:00"
