"""What can be known to fail is said before any actor starts: model folders, CLIP folders, questions."""

from __future__ import annotations

import json
from pathlib import Path

from actors.config import EmbedderConfig, RolloutConfig
from cluster.config import Config
from learners.rewards import own_terms
from services.checkpoints import load_sampler
from services.errors import UserError
from services.questions import read_questions
from services.schema import Question
from services.toyworld import MODELS, ToyWorld

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Of CPUs that multiply in bfloat16: there it is several times faster, elsewhere slower than float32."""
CPU_HEAD_DIM = 32
"""The CPU engine's attention takes head sizes that are multiples of this."""


def resolve(config: Config, world: ToyWorld | None) -> Config:
    """Empty fields filled from the toy world and its models, `auto` by what is there, and every path absolute: actors start
    elsewhere."""

    def model(name: str, toy: str) -> str:
        if not name:
            return str(MODELS / toy) if config.toyworld else ""
        return str(Path(name).absolute()) if is_folder(name) else name

    questions, validation = config.data.questions, config.data.validation
    if world and questions is None:
        questions, validation = world.questions, validation or world.validation
    root, sampler = config.data.video_root, config.sampler.checkpoint
    return config.model_copy(
        update={
            "data": config.data.model_copy(
                update={
                    "questions": questions and questions.absolute(),
                    "validation": validation and validation.absolute(),
                    "video_root": root and root.absolute(),
                    "cache": config.data.cache.absolute(),
                }
            ),
            "policy": config.policy.model_copy(update={"model": model(config.policy.model, "mllm")}),
            "sampler": config.sampler.model_copy(update={"checkpoint": sampler and sampler.absolute()}),
            "embedder": config.embedder.model_copy(
                update={
                    "model": model(config.embedder.model, "clip"),
                    "dtype": _number_type(config.embedder),
                }
            ),
        }
    )


def _number_type(embedder: EmbedderConfig) -> str:
    """The CLIP's number type, `auto` decided by the GPU it asks for or else by this machine's CPU."""
    if embedder.dtype != "auto":
        return embedder.dtype
    return "bfloat16" if embedder.num_gpus or multiplies_in_bfloat16() else "float32"


def multiplies_in_bfloat16() -> bool:
    """Whether this machine's CPU does; False where that is not known."""
    return CPUINFO.exists() and not BFLOAT16_FLAGS.isdisjoint(CPUINFO.read_text().split())


def check_inputs(config: Config) -> None:
    """Raises UserError for a model, a questions file or a reward function the run could not use.

    Hub names are left to the loaders.
    """
    model, clip = config.policy.model, config.embedder.model
    own_terms(config.rewards.extra)
    for field in ("questions", "validation"):
        file: Path | None = getattr(config.data, field)
        if file is not None and not file.is_file():
            raise UserError(f"data.{field}: {file}: no such file; name a file of questions (docs/data.md)")
    if config.sampler.checkpoint is not None:
        load_sampler(config.sampler.checkpoint, config.sampler.channels)
    if is_folder(model):
        check_mllm(Path(model), config.rollout)
    if is_folder(clip) and not (Path(clip) / "open_clip_config.json").is_file():
        raise UserError(
            f"embedder.model: {clip} has no open_clip_config.json; name a folder saved by open_clip, or a model it knows"
        )


def is_folder(model: str) -> bool:
    """Whether `model` means a local folder, not a hub name or none. Raises UserError for a path that is not there."""
    if model and Path(model).is_dir():
        return True
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"{model}: no such model folder")
    return False


def check_mllm(folder: Path, rollout: RolloutConfig) -> None:
    """A Qwen2.5-VL in Hugging Face format, whole enough to roll out and to train."""
    needs = {
        "the model's config": ["config.json"],
        "a tokenizer": ["tokenizer.json", "vocab.json"],
        "a processor": ["preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"],
        "weights": ["model.safetensors", "model.safetensors.index.json"],
    }
    for what, names in needs.items():
        if not any((folder / name).is_file() for name in names):
            raise UserError(
                f"policy.model: {folder} lacks {what} ({' or '.join(names)}); copy it from the original model"
            )
    if not _has_template(folder):
        raise UserError(
            f"policy.model: {folder} lacks a chat template (chat_template.jinja, chat_template.json, or a field of "
            "tokenizer_config.json); copy it from the original model"
        )
    shape = json.loads((folder / "config.json").read_text())
    if shape.get("model_type") != "qwen2_5_vl":
        raise UserError(f"policy.model: {folder} is a {shape.get('model_type')}; this version trains qwen2_5_vl")
    text = shape.get("text_config", shape)
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if rollout.num_gpus == 0 and head_dim % CPU_HEAD_DIM:
        raise UserError(
            f"policy.model: {folder} has attention heads of {head_dim}; the CPU engine takes multiples of {CPU_HEAD_DIM}. "
            "Use another model, or a GPU (rollout.num_gpus=1)"
        )
    if text["num_attention_heads"] % rollout.tensor_parallel:
        raise UserError(
            f"rollout.tensor_parallel={rollout.tensor_parallel}: must divide the model's {text['num_attention_heads']} "
            "attention heads"
        )


def _has_template(folder: Path) -> bool:
    """Whether transformers finds a chat template for the folder's tokenizer or processor."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    configs = (folder / "tokenizer_config.json", folder / "processor_config.json")
    return any("chat_template" in json.loads(file.read_text()) for file in configs if file.is_file())


def load_questions(config: Config) -> list[Question]:
    """The questions this run can learn from: of the pass rates asked for, and in stage 1 not of pass rate 1."""
    data = config.data
    assert data.questions is not None, "resolve() first"
    questions = read_questions(data.questions, data.video_root)
    stage_1 = config.sampler.objective == "difficulty"
    if not stage_1 and (data.min_pass_rate, data.max_pass_rate) == (0, 1):
        return questions
    known = [(question, question.pass_rate) for question in questions if question.pass_rate is not None]
    if missing := [question.id for question in questions if question.pass_rate is None]:
        asked = "sampler.objective=difficulty" if stage_1 else "data.min_pass_rate and data.max_pass_rate"
        raise UserError(
            f"{data.questions}: {asked} needs every question's pass_rate; missing for {len(missing)}, such as "
            f"{', '.join(missing[:3])}. `msjoe prepare --pass-rate` measures them"
        )
    low, high = data.min_pass_rate, data.max_pass_rate
    kept = [question for question, rate in known if low <= rate <= high and not (stage_1 and rate == 1)]
    if not kept:
        rates = [rate for _, rate in known]
        wanted = f"{low:g}…{high:g}" + (", nor below the 1 that leaves stage 1 nothing to learn" if stage_1 else "")
        raise UserError(
            f"{data.questions}: no question has a pass_rate in {wanted}; theirs are {min(rates):g}…{max(rates):g}"
        )
    return kept
