"""Question files: the training format, and one reader per benchmark.

Invariant: a reader gives every question of its file or a `UserError` that names the file, the row and the field.
"""

from services.questions.training import read_questions, write_questions

__all__ = ["read_questions", "write_questions"]
