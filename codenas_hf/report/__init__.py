"""What people look at: tables, drawings of the tables, one page per study."""

from codenas_hf.report.architecture import architecture_table, architecture_text, tensors_of_folder, tensors_of_model
from codenas_hf.report.cells import Table
from codenas_hf.report.comparison import budget_table, compare_table
from codenas_hf.report.page import view_of, write_report
from codenas_hf.report.study_view import StudyView
from codenas_hf.report.tables import front_table, trials_table

__all__ = [
    "StudyView",
    "Table",
    "architecture_table",
    "architecture_text",
    "budget_table",
    "compare_table",
    "front_table",
    "tensors_of_folder",
    "tensors_of_model",
    "trials_table",
    "view_of",
    "write_report",
]
