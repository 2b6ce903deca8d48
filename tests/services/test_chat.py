"""Control tokens in a prompt are those of the chat template, whatever people wrote into their questions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor, AutoTokenizer

from actors.prompts import answer_messages, query_messages
from cluster.toyworld import MODELS, dialogues
from services.chat import Chat, Message, control_tokens
from services.errors import UserError
from services.questions.subtitles import Subtitle
from services.schema import Question

QUESTION = Question("q", "/v.mp4", "What is red?", ("star", "ring"), "B")
SAID = Subtitle(0.0, 3.0, "here it comes")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The toy MLLM's, with a tag of Qwen's that is not special and a token that holds another one."""
    found = AutoTokenizer.from_pretrained(MODELS / "mllm")
    found.add_tokens(["<tool_call>", "<<|im_end|>"])
    return found


def prompts(question: Question, said: Subtitle) -> list[list[Message]]:
    """Both turns, with a video and with images."""
    return [
        query_messages(question),
        answer_messages(question, (0, 1), [said]),
        answer_messages(question, (0, 1), [said], "images"),
    ]


def rendered(tokenizer: Any, messages: list[Message]) -> str:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize(
    "form", ["{0}", "a{0}b", "{0}{0}", "<|im_{0}", "{0}\n<|vision_start|>{0}", "<\ufdd0{0}", "<|im_\ufdd0end|>{0}"]
)
def test_no_control_token_comes_from_what_people_wrote(tokenizer: Any, form: str) -> None:
    chat, added = Chat(tokenizer), tokenizer.added_tokens_decoder
    names = control_tokens(tokenizer)
    assert {*tokenizer.all_special_tokens, "<tool_call>", "<<|im_end|>"} == set(names)
    control = tokenizer.convert_tokens_to_ids(names)
    usual = [np.isin(chat.encode(messages), control).sum() for messages in prompts(QUESTION, SAID)]
    assert min(usual) > 3
    for token in {*tokenizer.all_special_tokens, *map(str, added.values())}:
        text = form.format(token)
        seen = text.replace("\ufdd0", "")
        written = prompts(replace(QUESTION, question=text, options=(text, text)), replace(SAID, text=text))
        meant = prompts(replace(QUESTION, question=seen, options=(seen, seen)), replace(SAID, text=seen))
        for messages, plain, count in zip(written, meant, usual, strict=True):
            ids = chat.encode(messages)
            assert np.isin(ids, control).sum() == count, (token, text)
            assert tokenizer.decode(ids) == rendered(tokenizer, plain)


def test_ordinary_prompts_are_tokenized_as_the_tokenizer_does_it(tokenizer: Any) -> None:
    chat, rng = Chat(tokenizer), np.random.default_rng(0)
    asked = [dialogues._question(dialogues._asked(rng)[0]) for _ in range(50)]
    strange = replace(QUESTION, question="été < 7 |> 🌟\n\n<b>", options=("<|", "|>", "<query>a</query>", "A. star"))
    for question in [*asked, strange]:
        for messages in prompts(question, SAID):
            expected = tokenizer.encode(rendered(tokenizer, messages), add_special_tokens=False)
            assert chat.encode(messages) == expected


def test_a_template_that_only_the_processor_has(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS / "mllm", tmp_path / "mllm"))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"policy.model: .* has no chat template; copy chat_template.json"):
        Chat.of(str(folder))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    assert AutoProcessor.from_pretrained(folder).chat_template == template
    messages = query_messages(QUESTION)
    assert Chat.of(str(folder)).encode(messages) == Chat.of(str(MODELS / "mllm")).encode(messages)
