"""The toy MLLM's cold start: its eyes first, then both turns of the talk.

The vision tower learns to name what each frame shows, by heads that are thrown away; two frames share a temporal patch, and of
its four visual tokens the first two learn to speak of the first frame, the others of the second. Then it stays as it is, and
the language model learns the dialogues: over one frame or two, then over more and more. That time has an order it learns by one
more such head, which asks its middle layer at every frame for the shape before.

Invariants: the seed decides the weights (on a given machine, torch and number of threads); pixels take the processor's and
positions the engine's own way.

Shape letters: `B` batch, `L` tokens, `P` pairs of frames, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice, product, starmap, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2Tokenizer

from actors.prompts import answer_messages, query_messages
from cluster.toyworld.dialogues import ANSWER, Dialogue, answers, queries, questions
from cluster.toyworld.gallery import Gallery
from cluster.toyworld.mllm import CHAT_TEMPLATE, HIDDEN, make_config, make_processor, save_mllm
from cluster.toyworld.questions import NUM_OPTIONS, pair
from cluster.toyworld.words import COLOURS, PLACES, SHAPES, Thing
from services.chat import Chat
from services.positions import mrope_positions, seconds_per_grid
from services.schema import LETTERS
from services.vision import PROCESSOR_KWARGS

SEE_PAIRS, SEE_LR = 64, 1.5e-3
TALK_BATCH, TALK_QUERIES, TALK_LR = 48, 8, 2e-3
"""Dialogues of a step, and how many of them are query turns."""
STAGES = ((0.06, 1, 2), (0.15, 2, 4), (1.0, 4, 8))
"""Until that share of the steps, answers are given over so many frames."""
THINGS = list(product(COLOURS, SHAPES))
"""Wherever they are."""
PREVIEWS = 4
SIDES = {"answer": 56, "query": 28}
"""Pixels of a frame's sides in each turn."""
Report = Callable[[float], None]


def train_mllm(
    folder: Path,
    gallery: Gallery,
    seed: int,
    steps: Mapping[str, int],
    taken: Mapping[str, int],
    report: Callable[[str, float], None],
) -> None:
    """Write tokenizer, processor and the model. Of each part, `sight` and `talk`: the steps of its schedule, and how
    many of them are taken; `report` hears the part and the loss of every one."""
    processor = make_processor(corpus(seed), phrases())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(make_config(processor.tokenizer))
        _add_names(model.get_input_embeddings().get_parameter("weight"), processor.tokenizer)
        rng = np.random.default_rng([seed, 3])
        see, talk = ((steps[part], taken[part], partial(report, part)) for part in ("sight", "talk"))
        _learn_to_see(model, processor, gallery, rng, *see)
        _learn_to_talk(model, processor, gallery, _batches(rng, talk[0]), rng, *talk)
    save_mllm(folder, model, processor)


def corpus(seed: int) -> Iterator[str]:
    """Texts that tokenizers of this world are trained on: the two turns' prompts and replies."""
    rng = np.random.default_rng([seed, 4])
    for turns in (queries(rng, 0), answers(rng, 1, 1)):
        for turn in islice(turns, 1000):
            yield _text(turn.messages)
            yield turn.reply
    yield "system\nuser\nassistant\n"


def phrases() -> list[str]:
    """What is the same in all prompts of a turn, before and behind the question; the tags of the replies; every option with its
    letter, and the same named in a reply: which letter stands for what is then learnt ten times sooner; and what a reply
    looks for, so that one token asks the frames for it."""
    found = ["You are a helpful assistant.", "<query>", "</query>", "</answer>"]
    for value in (*SHAPES, *COLOURS, *PLACES, *starmap(pair, combinations(COLOURS, 2))):
        found += [f"{letter}. {value}" for letter in LETTERS[:NUM_OPTIONS]]
        found += [f" {value}{ANSWER}"]
    found += [f" {shape} {verb}" for shape in SHAPES for verb in ("is", "comes")]
    found += [f" {colour} shape is" for colour in COLOURS] + [f" {colour} {shape} is" for colour, shape in THINGS]
    asked = list(islice(questions(np.random.default_rng(0)), 50))
    for texts in ([_text(query_messages(one)) for one in asked], [_text(answer_messages(one)) for one in asked]):
        before = _shared_start(texts).rpartition("\n")[0]
        behind = _shared_start([text[::-1] for text in texts])[::-1].partition("\n")[2]
        found += [phrase for phrase in (before, behind) if phrase]
    return found


@torch.no_grad()
def _add_names(embeddings_VD: Tensor, tokenizer: Qwen2Tokenizer) -> None:
    """To the embedding of ` red ring is` add those of ` red` and ` ring`: what is known of these holds for all their pairs."""
    for colour, shape in THINGS:
        names = tokenizer.encode(f" {colour} {shape}")
        embeddings_VD[tokenizer.convert_tokens_to_ids(f" {colour} {shape} is")] += embeddings_VD[names].sum(0)


def _shared_start(texts: Sequence[str]) -> str:
    return "".join(each[0] for each in takewhile(lambda each: len(set(each)) == 1, zip(*texts, strict=False)))


def _text(messages: Sequence[dict[str, Any]]) -> str:
    return "".join(part["text"] for message in messages for part in message["content"] if part["type"] == "text")


def _learn_to_see(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    gallery: Gallery,
    rng: np.random.Generator,
    steps: int,
    stop: int,
    report: Report,
) -> None:
    """Name shape, colour and place of each frame, and which of its pair it is, from each of its visual tokens."""
    looks = [
        [SHAPES.index(thing.shape), list(COLOURS).index(thing.colour), list(PLACES).index(thing.place)]
        for thing in gallery.things
    ]
    looks_N3 = torch.tensor(looks)
    heads = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, len(names)) for names in (SHAPES, COLOURS, PLACES, "01"))
    of_pair_F1 = torch.arange(2 * SEE_PAIRS)[:, None] % 2
    parameters = [*model.model.visual.parameters(), *heads.parameters()]
    optimizer, schedule = _optimizer(parameters, SEE_LR, steps)
    for _ in range(stop):
        things = rng.integers(len(gallery.things), size=2 * SEE_PAIRS)
        tokens = _see(model, processor, gallery.pictures(things, SIDES["answer"], rng))
        tokens_F2D = tokens.reshape(2 * SEE_PAIRS, 2, HIDDEN)  # a pair's rows of tokens: first frame, second frame
        targets_F24 = torch.cat([looks_N3[things], of_pair_F1], dim=1)[:, None].expand(-1, 2, -1)
        loss = torch.stack(
            [
                cross_entropy(head(tokens_F2D).flatten(0, 1), targets_F24[..., n].flatten())
                for n, head in enumerate(heads)
            ]
        ).sum()
        _step(loss, parameters, optimizer, schedule)
        report(loss.item())
    model.model.visual.requires_grad_(False)


def _see(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, frames: np.ndarray) -> Tensor:
    """Visual tokens [n, D] of an even number of frames, two to a temporal patch."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    inputs = processor.video_processor(videos=[pixels], return_tensors="pt", **PROCESSOR_KWARGS)
    return model.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"]).pooler_output


def _batches(rng: np.random.Generator, steps: int) -> Iterator[dict[str, list[Dialogue]]]:
    """The dialogues of each step, by turn."""
    asks = queries(rng, PREVIEWS)
    replies = {until: answers(rng, fewest, most) for until, fewest, most in STAGES}
    for step in range(steps):
        stage = next(until for until, _, _ in STAGES if step < until * steps)
        yield {
            "query": [next(asks) for _ in range(TALK_QUERIES)],
            "answer": [next(replies[stage]) for _ in range(TALK_BATCH - TALK_QUERIES)],
        }


def _learn_to_talk(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    gallery: Gallery,
    batches: Iterator[dict[str, list[Dialogue]]],
    rng: np.random.Generator,
    steps: int,
    stop: int,
    report: Report,
) -> None:
    """Minimise the cross-entropy of the replies, end token included, and that of every frame's shape before."""
    decoder, shape_head = model.model.language_model, torch.nn.Linear(HIDDEN, len(SHAPES))
    parameters = [*decoder.parameters(), *model.lm_head.parameters(), *shape_head.parameters()]
    optimizer, schedule = _optimizer(parameters, TALK_LR, steps)
    chat = Chat(processor.tokenizer, CHAT_TEMPLATE)
    for dialogues in islice(batches, stop):
        batch = _batch(model, processor, chat, dialogues)
        seen = {
            turn: _seen(model, processor, gallery, of_turn, SIDES[turn], rng) for turn, of_turn in dialogues.items()
        }
        is_visual_BL = batch.ids_BL == model.config.video_token_id
        x_BLD = model.get_input_embeddings()(batch.ids_BL)
        x_BLD[is_visual_BL] = torch.cat([*seen.values()])
        output = decoder(
            inputs_embeds=x_BLD, position_ids=batch.positions_3BL, use_cache=False, output_hidden_states=True
        )
        reply_loss = _reply_loss(model, output.last_hidden_state, batch)
        middle_BLD = output.hidden_states[len(decoder.layers) // 2]
        of_answers = middle_BLD[is_visual_BL][-len(seen["answer"]) :]  # the answer turns are the last rows
        shapes_before = _shapes_before(dialogues["answer"]).repeat_interleave(2)  # two tokens a frame
        shape_loss = cross_entropy(shape_head(of_answers), shapes_before)
        _step(reply_loss + shape_loss, parameters, optimizer, schedule)
        report(reply_loss.item())


@torch.no_grad()
def _seen(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    gallery: Gallery,
    dialogues: Sequence[Dialogue],
    side: int,
    rng: np.random.Generator,
) -> Tensor:
    """Visual tokens [n, D] of all frames of these dialogues, `side` pixels wide and high."""
    return _see(model, processor, gallery.pictures(_numbers(gallery, dialogues), side, rng))


def _reply_loss(model: Qwen2_5_VLForConditionalGeneration, hidden_BLD: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the replies' tokens, each predicted at the token before it."""
    is_reply_BL = batch.is_reply_BL[:, 1:]
    return cross_entropy(model.lm_head(hidden_BLD[:, :-1][is_reply_BL]), batch.ids_BL[:, 1:][is_reply_BL])


def _frames(dialogue: Dialogue) -> tuple[Thing, ...]:
    """The last of an odd number twice, as the processor has it."""
    return (*dialogue.shown, *dialogue.shown[-1:] * (len(dialogue.shown) % 2))


def _numbers(gallery: Gallery, dialogues: Sequence[Dialogue]) -> np.ndarray:
    """The frames of all dialogues one after the other."""
    return np.array([gallery.number(thing) for dialogue in dialogues for thing in _frames(dialogue)])


def _shapes_before(dialogues: Sequence[Dialogue]) -> Tensor:
    """Number of the shape in the frame before, of each of these frames; -100, which no loss counts, where there is none."""
    shapes = [[SHAPES.index(thing.shape) for thing in _frames(dialogue)] for dialogue in dialogues]
    return torch.tensor([before for of_one in shapes for before in (-100, *of_one[:-1])])


def _row(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, chat: Chat, dialogue: Dialogue, side: int
) -> tuple[list[int], int, np.ndarray]:
    """Token ids of prompt and reply, where the reply starts, and positions [3, L]."""
    vision, video = model.model.visual.config, model.config.video_token_id
    grid = ((len(dialogue.shown) + 1) // 2, side // 28, side // 28)
    prompt_ids = chat.encode(dialogue.messages)
    place = prompt_ids.index(video)
    prompt_ids[place : place + 1] = [video] * int(np.prod(grid))
    ids = prompt_ids + tokenizer.encode(dialogue.reply + "<|im_end|>")
    is_visual = np.array(ids) == video
    seconds = seconds_per_grid(len(dialogue.shown), dialogue.seconds, vision.temporal_patch_size)
    return ids, len(prompt_ids), mrope_positions(is_visual, [grid], [seconds * vision.tokens_per_second])


@dataclass(frozen=True)
class Batch:
    """Dialogues of one step, padded on the right."""

    ids_BL: Tensor
    is_reply_BL: Tensor
    """True for the tokens of replies."""
    positions_3BL: Tensor


def _batch(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    chat: Chat,
    dialogues: Mapping[str, Sequence[Dialogue]],
) -> Batch:
    """The dialogues, by turn, one after the other."""
    tokenizer = processor.tokenizer
    rows = [
        _row(model, tokenizer, chat, dialogue, SIDES[turn])
        for turn, of_turn in dialogues.items()
        for dialogue in of_turn
    ]
    size = len(rows), max(len(ids) for ids, _, _ in rows)
    ids_BL = torch.full(size, tokenizer.pad_token_id)
    is_reply_BL = torch.zeros(size, dtype=torch.bool)
    positions_3BL = torch.zeros((3, *size), dtype=torch.long)
    for row, (ids, start, positions) in enumerate(rows):
        ids_BL[row, : len(ids)] = torch.tensor(ids)
        is_reply_BL[row, start : len(ids)] = True
        positions_3BL[:, row, : len(ids)] = torch.from_numpy(positions)
    return Batch(ids_BL, is_reply_BL, positions_3BL)


def _optimizer(parameters: list[torch.nn.Parameter], peak: float, steps: int) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.05)


def _step(loss: Tensor, parameters: list[torch.nn.Parameter], optimizer: Any, schedule: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
