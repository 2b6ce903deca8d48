"""The rules that take a letter out of a reply, from the strictest to those of the benchmarks' own scripts.

Invariants: a rule is a pure function of the reply; where it finds no letter, or several that could be meant, it says None. No
rule guesses, also where the script that it follows draws a random letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from services.schema import LETTERS

Rule = Callable[[str], str | None]
"""`rule(reply)`: the letter that the reply says, None when it says none."""

_ALONE = re.compile(r"[*`]*\(?([A-Z])\)?[.:]?[*`]*[.:]?")
_THOUGHT = re.compile(r"\A.*</think>", re.DOTALL)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SCOPE = re.compile(
    r"<answer\b[^<>]*>(?P<tag>.*?)(?:</answer\s*>|\Z)|\\boxed\s*\{(?P<box>.*?)\}", re.DOTALL | re.IGNORECASE
)
_DECLARED = re.compile(
    r"(?<!\w)(?:(?:the|my)\s+)?(?:(?:correct|best|final)\s+)?(?:answer|option|choice)\s*(?:is\b|[:：=])"
    r"|(?<!\w)i\s+(?:choose|select|pick)\b"
    r"|答案是|答案为|选|옵션|정답은|답은|답\s*[:：]|答えは"
    r"|(?<!\w)option\s+(?P<said>[a-z])(?!\w)\s+is\s+(?:the\s+)?(?:correct|right|best)\b",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"[\s:：=,，;；]*(?P<open>(?:\\(?:text|mathrm|mathbf|textbf)\s*\{|(?:option|choice)\b\s*[:：]?\s*|[*_`\"'“‘(（\[{$]\s*)*)"
    r"(?P<letter>[A-Za-z])(?P<mark>[.:：!?)]*)(?P<close>[*_`\"'”’)）\]}$]*)(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_BESIDE = re.compile(
    r"[.:：)]?[ \t]*(?:and\s*/\s*or\b|and\b|or\b|[/&,+|]|或者?|和|또는|か|と)\s*(?P<other>.*)",
    re.DOTALL | re.IGNORECASE,
)
_PARENTHESIS = re.compile(r"(?<!\w)[(（]\s*([A-Za-z])\s*[)）](?!\w)")
_LABEL = re.compile(r"(?<!\w)([A-Za-z])[.):](?=\s|$)")
_ASSERTED = re.compile(
    r"(?:,?\s*because\b|(?:is|seems|looks|appears)\s+(?:(?:the|a)\s+)?(?:correct|right|best|answer|option|choice)\b)",
    re.IGNORECASE,
)
_FORMS = ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "))
_NOUNS = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
_PHRASES = (
    *(f"{article}{noun} is" for noun in _NOUNS for article in ("", "the ")),
    *("my answer is", "my choice is"),
    *("i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_ENDING = " \t\r\n.!?,;:。！？，；：*_`"


def strict(reply: str) -> str | None:
    """The letter of a reply that is a letter and nothing else: `A`, `A.`, `(A)`, `**A**`.

    What is thought before `</think>` is passed over. A reply with `<answer>` tags may reason before them; it must have exactly
    one pair, with the letter alone in it.
    """
    reply = _THOUGHT.sub("", reply)
    tags = _TAG.findall(reply)
    if len(tags) > 1 or reply.count("<answer>") > 1:
        return None
    alone = _ALONE.fullmatch((tags[0] if tags else reply).strip())
    return alone[1] if alone else None


def lenient(reply: str) -> str | None:
    """The one letter that a reply in any common form means.

    What is thought before `</think>` is passed over. Then, in this order: the last `<answer>` or `\\boxed{}`; the last
    declaration (`the answer is B`); a letter at the start that is marked as one (`B.`, `(B) text`, `B because`), in
    parentheses, or alone at the end. Two different letters in one of these places, as `A or B`, are None, and so is a letter
    within prose.
    """
    text = _THOUGHT.sub("", reply).strip()
    scopes = list(_SCOPE.finditer(text))
    if scopes:
        text = (scopes[-1]["tag"] if scopes[-1]["tag"] is not None else scopes[-1]["box"]).strip()
    if declared := list(_DECLARED.finditer(text)):
        last = declared[-1]
        return _sole(last["said"] + text[last.end() :] if last["said"] else text[last.end() :])
    if scopes:
        return _sole(text)
    return _marked(text)


def _sole(text: str) -> str | None:
    """The letter at the start of `text`, unless another one stands beside it."""
    choice = _choice(text)
    return choice[0].upper() if choice and not _has_second(choice[1]) else None


def _choice(text: str) -> tuple[str, str, bool] | None:
    """A letter at the start of `text` as it is written, what follows it, and whether it is wrapped; None for a word, an
    abbreviation or a path."""
    found = _CHOICE.match(text)
    if found is None:
        return None
    mark, close, rest = found["mark"], found["close"], found["rest"]
    follows = (mark + close + rest) if not found["open"].strip() else rest
    if re.match(r"\w|['’-]\w|[.:/][\w/]", follows) and not re.match(r"/\s*[A-Za-z](?!\w)", follows):
        return None
    if re.match(r"\w", rest):
        return None
    return found["letter"], mark + rest, bool(found["open"].strip())


def _has_second(rest: str) -> bool:
    """Whether another letter is offered beside the one before `rest`: `or B`, `, B`, or ` B` and the end."""
    if beside := _BESIDE.match(rest):
        return _choice(beside["other"]) is not None
    if rest[:1] in (".", ":", ")", "：") or rest.lstrip(" \t")[:1] in ("\n", "\r"):
        return False
    other = _choice(rest)
    return other is not None and not other[1].strip(_ENDING)


def _marked(text: str) -> str | None:
    """The letter of a reply without tag and declaration: all letters that are marked as options must be the same."""
    labels = {match[1].upper() for rule in (_PARENTHESIS, _LABEL) for match in rule.finditer(text)}
    meant = {match[1].upper() for match in _PARENTHESIS.finditer(text)}
    leading = _choice(text)
    if leading and _has_second(leading[1]):
        return None
    if leading:
        rest = leading[1].lstrip(" \t")
        if leading[2] or not rest.strip(_ENDING) or rest[0] in ".:)：\n" or _ASSERTED.match(rest):
            meant.add(leading[0].upper())
    for line in [*text.splitlines(), *re.split(r"[\n,;，；]", text)[-1:]]:
        alone = _choice(line)
        if alone and alone[0].isupper() and not alone[1].strip(_ENDING):
            labels.add(alone[0])
    ending = _choice(re.split(r"[\n,;，；]", text)[-1])
    if ending and ending[0].isupper() and not ending[1].strip(_ENDING):
        meant.add(ending[0])
    return meant.pop() if len(meant) == 1 and meant >= labels else None


def first_of(letters: str, prefixes: Sequence[str]) -> Rule:
    """The first of `letters` anywhere in the reply, once `prefixes` are taken out: the rule of Video-MME and its successors.

    Any capital counts, so `Because …` says B.
    """

    def rule(reply: str) -> str | None:
        for prefix in prefixes:
            reply = reply.replace(prefix, "")
        found = re.search(f"[{letters}]", reply)
        return found[0] if found else None

    return rule


def within_bracket(reply: str) -> str | None:
    """The first character behind the first `(`, or of the reply, up to the first `)` or blank: LVBench's rule."""
    text = reply.strip().split(")")[0].strip()
    if "(" in text:
        text = text.split("(")[1].strip()
    return _if_letter(text.split(" ")[0][:1])


def before_bracket(reply: str) -> str | None:
    """The reply up to the first `)`, which must be the letter: MLVU's rule, whose prompt ends in `(`; a reply may repeat it."""
    return _if_letter(reply.strip().removeprefix("(").split(")")[0].strip())


def ranked(letters: str) -> Rule:
    """The best marked of `letters`, by lmms-eval's order of forms (`_FORMS`); of equally good ones the last.

    A letter at the start or the end wins over any declaration, and where none is marked, any capital counts.
    """

    def rule(reply: str) -> str | None:
        text = reply.strip()
        for sign in ",.!?;:'\"":
            text = text.strip(sign)
        return max(_ranks(f" {text} ", letters), default=(0, 0, None))[2]

    return rule


def _ranks(text: str, letters: str) -> Iterator[tuple[int, int, str]]:
    """Rank, position and letter of every way in which `text`, between two blanks, says one of the letters."""
    inner, lower, found = text.strip(), text.lower(), False
    after = [lower.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in lower]
    for letter in letters:
        places = [(rank, text.rfind(form.format(letter))) for rank, form in _FORMS]
        places += [(7, text.find(letter, start)) for start in after]
        places += [(10, 0)] if re.match(rf"{letter}(?![^\W\d_])", inner) else []
        places += [(9, len(text) - 1)] if re.search(rf"(?<![^\W\d_]){letter}\Z", inner) else []
        for rank, place in places:
            if place >= 0:
                found = True
                yield rank, place, letter
    if not found:
        yield from ((0, text.rfind(letter), letter) for letter in letters if letter in text)


def _if_letter(text: str) -> str | None:
    return text if len(text) == 1 and text in LETTERS else None
