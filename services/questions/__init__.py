"""Question files: the training format, and one reader for every form that others publish, read as they are.

A form is known by its columns (`read.FORMATS`), never by its name; each has one small module.
"""

from services.questions.read import Recognised, Refused, read_questions, scan_questions
from services.questions.training import write_questions

__all__ = ["Recognised", "Refused", "read_questions", "scan_questions", "write_questions"]
