"""The toy world's MLLM: a Qwen2.5-VL of about a million parameters in Hugging Face's folder format, with a cold start.

Random weights would give gibberish, so that every reward is equal and nothing is learnt. A short supervised warm-up
therefore teaches the *form* of the two turns' replies, never the right answer: letters are drawn at random, and every
eighth reply breaks the format so that rewards differ. Random vectors stand in for the embeddings of frames.

Invariants: the seed decides the weights (on a given machine and torch). The folder loads in transformers and vLLM alike
(head_dim is a multiple of 32, as vLLM's CPU attention asks). The vision tower keeps its random weights.

Shape letters: `B` batch, `L` tokens, `D` hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from services.schema import LETTERS, Question
from services.toyworld.world import COLOURS, KINDS, NUM_OPTIONS, PLACES, SHAPES, Needle, ask

PromptBuilder = Callable[[Question], list[dict[str, Any]]]
"""The chat messages of one turn."""
_BATCH = 12
_BROKEN = 0.125
"""Share of warm-up replies whose format is broken."""
_PEAK_LR = 5e-3
_FRAME_TOKENS = (2, 65)
"""Range of the number of visual tokens in a warm-up prompt."""
_FRAME_STD = 0.04
"""Spread of what stands in for visual tokens: a part common to a prompt plus each token's own; as the vision tower."""
_VOCABULARY = 1200
"""Tokens at most, special ones left out."""
_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
"""Qwen2.5-VL's in function, without picture numbering and tools."""


@dataclass(frozen=True)
class _Example:
    """One warm-up dialogue."""

    messages: list[dict[str, Any]]
    reply: str


def make_mllm(
    folder: Path,
    seed: int,
    query_prompt: PromptBuilder,
    answer_prompt: PromptBuilder,
    steps: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write tokenizer, processor, model and generation config, the model warmed up for `steps` steps."""
    examples = _examples(np.random.default_rng(seed), query_prompt, answer_prompt)
    processor = _processor(corpus(seed, query_prompt, answer_prompt))
    tokenizer = processor.tokenizer
    with torch.random.fork_rng(), _one_thread():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer))
        _warm_up(model, processor, examples, steps, progress)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(bos_token_id=pad, pad_token_id=pad, eos_token_id=[end, pad])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def corpus(seed: int, query_prompt: PromptBuilder, answer_prompt: PromptBuilder) -> Iterator[str]:
    """Texts that tokenizers of this world are trained on: the two turns' prompts and replies."""
    examples = _examples(np.random.default_rng([seed, 1]), query_prompt, answer_prompt)
    for _, example in zip(range(1000), examples, strict=False):
        yield from (part["text"] for message in example.messages for part in message["content"] if "text" in part)
        yield example.reply
    yield "system\nYou are a helpful assistant.\nuser\nassistant\n"


def _examples(
    rng: np.random.Generator, query_prompt: PromptBuilder, answer_prompt: PromptBuilder
) -> Iterator[_Example]:
    """Endless dialogues about random needles, the two turns in alternation."""
    while True:
        for prompt, reply in ((query_prompt, _query_reply), (answer_prompt, _answer_reply)):
            needle = Needle(str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), str(rng.choice(list(PLACES))))
            kind = str(rng.choice(KINDS))
            question = ask(kind, needle, LETTERS[rng.integers(NUM_OPTIONS)], rng)
            yield _Example(prompt(question), reply(kind, needle, question, rng))


def _query_reply(kind: str, needle: Needle, question: Question, rng: np.random.Generator) -> str:
    """One line of reasoning and one to four queries; broken: a query whose tags are missing or unclosed."""
    option, other = (question.options[index] for index in rng.permutation(NUM_OPTIONS)[:2])
    shape, colour = needle.shape, needle.colour
    target, queries = {
        "colour": (f"the {shape}", [f"a {shape}", f"a {option} {shape}", f"a {other} {shape}", f"a large {shape}"]),
        "shape": (f"the {colour} shape", [f"a {colour} shape", f"a {colour} {option}", f"a {colour} {other}", colour]),
        "place": (f"the {shape}", [f"a {shape}", f"a {shape} at the {option}", f"a {shape} at the {other}", shape]),
    }[kind]
    lines = [queries[index] for index in rng.permutation(len(queries))[: rng.integers(1, 5)]]
    tags = [("<query>", "</query>")] * len(lines)
    if rng.random() < _BROKEN:
        tags[rng.integers(len(lines))] = [("", "</query>"), ("<query>", "")][rng.integers(2)]
    start = ["To answer I look for", "I must find", "The frames should show"][rng.integers(3)]
    return "\n".join([f"{start} {target}.", *(f"{a}{line}{b}" for line, (a, b) in zip(lines, tags, strict=True))])


def _answer_reply(kind: str, needle: Needle, question: Question, rng: np.random.Generator) -> str:
    """One sentence and a random option's letter; broken: no tag, or the option's text in it."""
    index = int(rng.integers(NUM_OPTIONS))
    letter, option = LETTERS[index], question.options[index]
    seen = {
        "colour": f"a {option} {needle.shape}",
        "shape": f"a {needle.colour} {option}",
        "place": f"a {needle.shape} at the {option}",
    }[kind]
    answer = f"<answer>{letter}</answer>"
    if rng.random() < _BROKEN:
        answer = [f"The answer is {letter}.", f"<answer>{option}</answer>"][rng.integers(2)]
    return f"I see {seen}. {answer}"


def _processor(texts: Iterable[str]) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor around a byte-level BPE of the texts; special tokens have the last ids, as in Qwen."""
    bpe = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges: list[Any] = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        additional_special_tokens=_SPECIAL,
        model_max_length=8192,
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16384}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size),
        tokenizer,
        Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def _config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """Every dimension small, every ratio as in Qwen2.5-VL: 28-pixel visual tokens, two frames a temporal patch."""
    ids = tokenizer.get_vocab()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "initializer_range": 0.04,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 128,
        "out_hidden_size": 128,
        "tokens_per_second": 2,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        dtype="float32",
    )


def _warm_up(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    examples: Iterator[_Example],
    steps: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Minimise the cross-entropy of the replies, end token included."""
    embed, decoder = model.get_input_embeddings(), model.model.language_model
    optimizer = torch.optim.AdamW([*decoder.parameters(), *model.lm_head.parameters()], lr=_PEAK_LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LR, total_steps=max(2, steps), pct_start=0.1)
    for step in range(steps):
        ids_BL, is_reply_BL = _batch([next(examples) for _ in range(_BATCH)], processor)
        is_frame_BL = ids_BL == model.config.video_token_id
        x_BLD = embed(ids_BL).masked_fill(is_frame_BL[..., None], 0)
        frames_BLD = (torch.randn_like(x_BLD) + torch.randn_like(x_BLD[:, :1])) * _FRAME_STD
        x_BLD = x_BLD + is_frame_BL[..., None] * frames_BLD
        positions_3BL = torch.arange(ids_BL.shape[1]).expand(3, *ids_BL.shape)
        hidden_BLD = decoder(inputs_embeds=x_BLD, position_ids=positions_3BL, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden_BLD[:, :-1][is_reply_BL[:, 1:]])
        loss = torch.nn.functional.cross_entropy(logits, ids_BL[:, 1:][is_reply_BL[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress("mllm", step + 1, steps)


def _batch(examples: list[_Example], processor: Qwen2_5_VLProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and which of them belong to the reply, both [B, L], padded on the right."""
    rows: list[tuple[list[int], int]] = []
    for example in examples:
        prompt = processor.apply_chat_template(example.messages, add_generation_prompt=True)
        pads = int(torch.randint(*_FRAME_TOKENS, ()))
        prompt_ids = processor.tokenizer.encode(prompt.replace("<|video_pad|>", "<|video_pad|>" * pads))
        rows.append((prompt_ids + processor.tokenizer.encode(example.reply + "<|im_end|>"), len(prompt_ids)))
    length = max(len(ids) for ids, _ in rows)
    ids_BL = torch.full((len(rows), length), processor.tokenizer.pad_token_id)
    is_reply_BL = torch.zeros((len(rows), length), dtype=torch.bool)
    for row, (ids, start) in enumerate(rows):
        ids_BL[row, : len(ids)] = torch.tensor(ids)
        is_reply_BL[row, start : len(ids)] = True
    return ids_BL, is_reply_BL


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: more would sum in another order, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
