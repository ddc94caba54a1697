"""What is to be seen of a run: log, progress, trackers, plots, report and page."""
