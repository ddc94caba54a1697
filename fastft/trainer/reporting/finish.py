"""The end of a run: plot, report and page, also of one that was stopped."""

from fastft.trainer.given import data_of
from fastft.trainer.reporting.page import write_page
from fastft.trainer.reporting.plot import plot_losses
from fastft.trainer.reporting.rendering import write_text
from fastft.trainer.reporting.report import Report, summarize
from fastft.trainer.setup import Setup


def finish(run: Setup, peak_memory_bytes: int) -> Report:
    """Write what is to be looked at, and say how to go on."""
    config, stopped_by = run.config, run.stop.signal
    report = summarize(run, peak_memory_bytes, stopped_by.name if stopped_by else None)
    if run.world.leads:
        losses, evaluations = run.log.having("loss"), run.log.having("eval_loss")
        plot_losses(run.plot, losses, evaluations, f"{config.model} on {data_of(config)}")
        report.write(run.output_dir)
        write_text(report, run.output_dir)
        write_page(report, run.log.records, run.output_dir)
    if stopped_by:
        run.progress.say(f"stopped by {stopped_by.name} after step {run.state.step}, {run.saved or 'nothing'} saved")
        if run.saved and not config.save_only_model:
            run.progress.say(f"to go on: fastft train {run.config_file} --resume_from_checkpoint true")
    run.world.wait()
    return report
