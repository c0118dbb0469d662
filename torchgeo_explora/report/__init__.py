"""Pages that show what runs did."""

from torchgeo_explora.report.compare import compare_runs
from torchgeo_explora.report.run import Run, read_run
from torchgeo_explora.report.run_page import report_run

__all__ = ['Run', 'compare_runs', 'read_run', 'report_run']
