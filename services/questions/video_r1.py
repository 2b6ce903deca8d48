"""Video-R1's training file: `problem`, lettered `options`, `solution` (`<answer>B</answer>`), `path`.

It mixes videos with images, and multiple choice with numbers, regression, OCR and free answers: only multiple choice about
videos is a question for us.
"""

from __future__ import annotations

from services.questions.choices import letter, split_options, unlabelled
from services.questions.rows import Format, NoQuestion, Place, Row, naming, optional_text, shown, text, texts, unicode
from services.schema import Question


def _question(row: Row, place: Place) -> Question:
    for field, ours in (("problem_type", "multiple choice"), ("data_type", "video")):
        unicode(row.get(field), field)
        if row.get(field, ours) != ours:
            raise NoQuestion(f"{field} {shown(row[field])}, not {ours!r}")
    with naming("options"):
        options = unlabelled(texts(row, "options"))
    unicode(row.get("solution"), "solution")
    with naming("solution"):
        right = letter(row.get("solution"), len(options))
    with naming("problem"):
        question, _ = split_options(text(row, "problem"))
    source = optional_text(row, "data_source")
    return Question(
        place.id,
        place.find(text(row, "path")),
        question,
        options,
        right,
        data_source=source,
        group=(source,) if source else (),
    )


VIDEO_R1 = Format(
    "Video-R1",
    ("problem", "solution", "path"),
    ("problem", "problem_type", "data_type", "options", "solution", "path", "data_source"),
    _question,
)
