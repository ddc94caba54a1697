"""A report for people: what `fastft train` prints at its end and writes to report.txt."""

import io
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from fastft.trainer.reporting.measure import Cost, HeadCost
from fastft.trainer.reporting.report import Generation, Report

REPORT = "report.txt"


def render(report: Report) -> RenderableType:
    """For `rich.console.Console.print`."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    for name, value in rows(report):
        table.add_row(name, Text(value))
    return Group(*(_panel(generation) for generation in report.generations), table)


def write_text(report: Report, output_dir: Path) -> None:
    """report.txt, as `render` shows it."""
    console = Console(file=io.StringIO(), width=110, record=True)
    console.print(render(report))
    (output_dir / REPORT).write_text(console.export_text(), encoding="utf-8")


def rows(report: Report) -> list[tuple[str, str]]:
    """The facts by name; a name that begins with spaces belongs to the one before."""
    head = "patched: head on supervised tokens only" if report.patch else "not patched: head on every position"
    skipped = f", {report.skipped_steps} of them left out as bad" if report.skipped_steps else ""
    done = f"{report.step:,} of {report.max_steps:,} ({report.epoch:.2f} epochs)"
    told = [
        ("model", f"{report.model}, {report.parameters / 1e6:,.1f} M parameters; {head}"),
        ("data", f"{report.data}: {report.train_samples:,} samples to train on, {report.eval_samples:,} held out"),
        *_left_out("training", report.train_dropped, report.train_truncated),
        *_left_out("held-out", report.eval_dropped, report.eval_truncated),
        ("objective", report.objective),
        ("device", f"{report.device}, {report.precision}"),
        ("steps", done + skipped + (f", stopped by {report.interrupted_by}" if report.interrupted_by else "")),
        (
            "supervised share",
            f"{report.supervised_share:.1%} ({report.supervised_tokens:,} of {report.tokens:,} tokens seen)",
        ),
    ]
    if report.eval_loss_after is not None:
        after = _evaluated(report.eval_loss_after, report.perplexity_after)
        if report.eval_loss_before is not None:
            after = f"{_evaluated(report.eval_loss_before, report.perplexity_before)} -> {after}"
        told.append(("evaluation loss", after))
    for name, loss in report.eval_losses_after.items():
        known = report.eval_losses_before.get(name)
        told.append((f"  {name}", f"{loss:.4f}" if known is None else f"{known:.4f} -> {loss:.4f}"))
    if report.error_rate_after is not None:
        was = "" if report.error_rate_before is None else f"{report.error_rate_before:.1%} -> "
        told.append(("word error rate", f"{was}{report.error_rate_after:.1%} of held-out completions"))
    if report.train_loss is not None:
        told.append(("training loss", f"{report.train_loss:.4f} at the end"))
    speed = f"{report.tokens_per_second:,.0f} tokens/s, {report.supervised_tokens_per_second:,.0f} supervised/s"
    waiting = f"{report.data_share:.1%} of it waiting for data"
    told.append(("speed", f"{speed} ({report.seconds:,.1f} s of training steps, {waiting})"))
    if report.mfu is not None:
        told.append(("FLOPs", f"{report.mfu:.1%} of the rate of a matrix product measured here, padding not counted"))
    told.append(("peak memory", f"{megabytes(report.peak_memory_bytes)} while training"))
    if report.head is not None:
        told += _head_rows(report.head)
    told.append(("checkpoint", report.checkpoint or "none"))
    told.append(("loss curves", report.plot))
    told.append(("log", report.log))
    return told


def _left_out(kind: str, dropped: dict[str, int], truncated: int) -> list[tuple[str, str]]:
    """What of the data is not learned; nothing where that is none."""
    facts = [f"{truncated:,} {kind} samples cut at max_length"] if truncated else []
    facts += [f"{count:,} {kind} records dropped: {reason}" for reason, count in dropped.items()]
    return [("  left out", fact) for fact in facts]


def _evaluated(loss: float, perplexity: float | None) -> str:
    return f"{loss:.4f}" if perplexity is None else f"{loss:.4f} (perplexity {perplexity:.2f})"


def megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _head_rows(head: HeadCost) -> list[tuple[str, str]]:
    rows = [
        (
            "head + loss, one batch",
            f"{head.supervised:,} of {head.positions:,} positions supervised, vocabulary {head.vocab:,}",
        ),
        ("  fused", _cost(head.fused)),
        ("  unfused", _cost(head.unfused)),
    ]
    if head.fused.seconds and head.unfused.seconds and head.fused.bytes and head.unfused.bytes is not None:
        times, memory = head.unfused.seconds / head.fused.seconds, head.unfused.bytes / head.fused.bytes
        rows.append(("  saved", f"unfused takes {times:.1f} x the time and {memory:.1f} x the memory"))
    return rows


def _cost(cost: Cost) -> str:
    if cost.seconds is None or cost.bytes is None:
        return "out of memory"
    return f"{1000 * cost.seconds:,.0f} ms forward and backward, {megabytes(cost.bytes)} with gradients"


def _panel(generation: Generation) -> Panel:
    parts: list[RenderableType] = [Text(_tail(generation.prompt), style="dim")]
    for name, text in (
        ("the data's own", generation.reference),
        ("before training", generation.before),
        ("after training", generation.after),
    ):
        if text is not None:
            parts += [Rule(name, align="left", style="cyan"), Text(text)]
    return Panel(Group(*parts), title=Text(f"held out: {generation.origin}"), title_align="left", border_style="cyan")


def _tail(text: str, lines: int = 24) -> str:
    """The last lines of a prompt, which are the ones it was about."""
    kept = text.strip().splitlines()
    return "\n".join(["...", *kept[-lines:]] if len(kept) > lines else kept)
