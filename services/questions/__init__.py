"""Question files: the training format, and one reader for every form that others publish, read as they are.

A form is known by its columns (`read.FORMATS`), never by its name; each has one small module.
"""

from services.questions.read import Recognised, Refused, read_questions, read_rows, scan_questions
from services.questions.training import check_suffix, write_questions

__all__ = ["Recognised", "Refused", "check_suffix", "read_questions", "read_rows", "scan_questions", "write_questions"]
