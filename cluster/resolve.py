"""What a config leaves open made concrete: the toy world's questions and models, and the numbers that CLIP computes in."""

from __future__ import annotations

from pathlib import Path

from actors.config import EmbedderConfig
from cluster.config import Config
from cluster.toyworld import MODELS, ToyWorld
from services.errors import UserError
from services.own_functions import absolute

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Marks of CPUs that multiply in bfloat16: there it is several times faster, elsewhere slower than float32."""


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
            "policy": config.policy.model_copy(
                update={
                    "model": model(config.policy.model, "mllm"),
                    "loss": absolute(config.policy.loss),
                }
            ),
            "sampler": config.sampler.model_copy(update={"checkpoint": sampler and sampler.absolute()}),
            "embedder": config.embedder.model_copy(
                update={
                    "model": model(config.embedder.model, "clip"),
                    "dtype": _number_type(config.embedder),
                }
            ),
        }
    )


def toy_parts(config: Config) -> list[str]:
    """The parts of a resolved config (questions, MLLM, CLIP) that are the toy world's, whichever machine resolved it."""
    questions = config.data.questions
    of_world = bool(config.toyworld and questions and questions.parent.parent.name == "toyworld")
    models = {"MLLM": config.policy.model, "CLIP": config.embedder.model}
    shipped = [name for name, model in models.items() if Path(model).match(f"toyworld/models/{name.lower()}")]
    return (["questions"] if of_world else []) + shipped


def _number_type(embedder: EmbedderConfig) -> str:
    """The CLIP's number type, `auto` decided by the GPU it asks for or else by this machine's CPU."""
    if embedder.dtype != "auto":
        return embedder.dtype
    return "bfloat16" if embedder.num_gpus or multiplies_in_bfloat16() else "float32"


def multiplies_in_bfloat16() -> bool:
    """Whether this machine's CPU does; False where that is not known."""
    return CPUINFO.exists() and not BFLOAT16_FLAGS.isdisjoint(CPUINFO.read_text().split())


def is_folder(model: str) -> bool:
    """Whether `model` means a local folder, not a hub name or none. Raises UserError for a path that is not there."""
    if model and Path(model).is_dir():
        return True
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"{model}: no such model folder")
    return False
