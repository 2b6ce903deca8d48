"""Chat messages as token ids of the MLLM: its own chat template and tokenizer.

Invariant: the control tokens of a prompt are those that the template writes; one that is spelled out in a message's text
(`<|im_end|>` in a question, `<|video_pad|>` in a subtitle) is read as the characters it is made of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from services.errors import UserError

Part = dict[str, str]
"""One part of a message: `{"type": "video"}`, `{"type": "image"}` or `{"type": "text", "text": …}`."""
Message = dict[str, Any]
"""One chat message of the Hugging Face chat templates: `{"role": "user", "content": [Part, …]}`."""

_CUT = "\ufdd0"
"""A Unicode noncharacter, which no text holds: the tokenizer reads what is on its two sides separately."""
_MARKUP = re.compile(r"<\S+>")
_OUR_TAG = re.compile(r"</?(?:query|answer)>")


class Chat:
    """Renders messages with `template` (None: the tokenizer's own) and tokenizes them."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, template
        names = "|".join(map(re.escape, control_tokens(tokenizer))) or "(?!)"
        self._control = re.compile(rf"(?={names})(.)", re.DOTALL)

    @classmethod
    def of(cls, model: str) -> Chat:
        """The chat of a model folder or hub name.

        Raises UserError when neither its tokenizer nor its processor has a chat template.
        """
        from transformers import AutoProcessor, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        template = tokenizer.chat_template or AutoProcessor.from_pretrained(model).chat_template
        if template is None:
            raise UserError(
                f"policy.model: {model} has no chat template; copy chat_template.json or chat_template.jinja from the "
                "original model"
            )
        return cls(tokenizer, template)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt that asks for a reply to `messages`; one placeholder stands for each video or image."""
        shown = [message | {"content": [self._as_text(part) for part in message["content"]]} for message in messages]
        prompt = self._tokenizer.apply_chat_template(
            shown, chat_template=self._template, add_generation_prompt=True, tokenize=False
        )
        pieces = (self._tokenizer.encode(piece, add_special_tokens=False) for piece in prompt.split(_CUT))
        return [token for piece in pieces for token in piece]

    def _as_text(self, part: Part) -> Part:
        """The part with every control token in its text cut behind the first character."""
        if part["type"] != "text":
            return part
        return part | {"text": self._control.sub(rf"\1{_CUT}", part["text"].replace(_CUT, ""))}


def control_tokens(tokenizer: Any) -> list[str]:
    """The tokens that mean something other than their characters: the special ones and other added ones in angle brackets.

    Left out are the tags of our own reply formats, which the toy tokenizer has as words.
    """
    added = tokenizer.added_tokens_decoder.values()
    return [
        str(token)
        for token in added
        if token.special or (_MARKUP.fullmatch(str(token)) and not _OUR_TAG.fullmatch(str(token)))
    ]
