"""The config of a run: every section, read from a YAML recipe and dotted overrides.

Invariant: a config that loads is one that can be planned; what is wrong is said with the field's dotted name and what would
be valid, as a UserError.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from actors.config import EmbedderConfig, PromptConfig, RolloutConfig, SelectorConfig
from cluster.read_yaml import read_yaml
from cluster.toyworld.config import ToyWorldConfig
from learners.config import PolicyConfig, RewardConfig, SamplerConfig
from learners.objectives import ONLY_AGGREGATION
from services.config import DataConfig, FramesConfig, Section, Seed
from services.errors import UserError
from services.metrics.trackers import TRACKERS
from services.schema import num_layers

RECIPES = Path(__file__).parent / "recipes"

if TYPE_CHECKING:
    TrackerName = str
else:  # the names of the table, whatever rows it has
    TrackerName = Literal[tuple(TRACKERS)]


class TrainConfig(Section):
    """The training loop."""

    steps: int = Field(default=1000, ge=0)
    """Training steps; with 0 the networks are only measured, on `data.validation`."""
    questions_per_step: int = Field(default=32, ge=1)
    """Questions a step."""
    group_size: int = Field(default=8, ge=1)
    """G: query turns per question."""
    draws: int = Field(default=1, ge=1)
    """M: frame draws, each with its answer, per query turn (paper: 1; more of them judge the sampler by itself)."""
    refills: int = Field(default=0, ge=0)
    """Further rounds of questions in place of groups without signal (dynamic sampling, arXiv 2503.14476); 0 keeps them."""
    seed: Seed = 0
    """Decides data order, sampled tokens, drawn frames and the sampler's initial weights."""
    validate_every: int = Field(default=50, ge=1)
    """Steps between validations on `data.validation`; one comes before the first step and one after the last as well."""
    validate_budgets: tuple[int, ...] = ()
    """Smaller frame budgets that the networks are measured at as well, once, after the last step."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between checkpoints; the last step always leaves one, and so does a run that is told to stop."""
    checkpoint_bucket: str = ""
    """Address (`s3://…`, `gs://…`) where checkpoints are kept as well, under the name of the run's folder; `--resume` finds
    them there when the folder has none as new. Empty: none."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; older ones are removed."""
    keep_best: int = Field(default=1, ge=0)
    """Checkpoints of the highest validation accuracy that are kept besides."""
    grace: float = Field(default=30.0, gt=0)
    """Seconds that a run which is told to stop (SIGTERM, SIGINT) has to come to the end of an update and to write a
    checkpoint."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Trackers that are sent every metric that `metrics.jsonl` gets: `tensorboard` (a folder of the run's), `wandb`, `mlflow`.
    The last two are extras, and take server, project and key from their own variables (`WANDB_…`, `MLFLOW_…`)."""


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str | None = None
    """`auto` joins the running cluster, `local` starts a private one; empty: what `RAY_ADDRESS` names, or a private one."""
    placement_deadline: float = Field(default=600.0, gt=0)
    """Seconds to wait until the cluster (or its autoscaler) has room for every actor."""
    object_store_gib: float | None = Field(default=None, gt=0)
    """Object store of a private cluster, GiB; a cluster that is joined has its own. Empty: Ray's default."""


class Config(BaseSettings):
    """Everything a training run is decided by."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, cli_avoid_json=True)

    train: TrainConfig = TrainConfig()
    data: DataConfig = DataConfig()
    frames: FramesConfig = FramesConfig()
    prompts: PromptConfig = PromptConfig()
    policy: PolicyConfig = PolicyConfig()
    sampler: SamplerConfig = SamplerConfig()
    rewards: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    embedder: EmbedderConfig = EmbedderConfig()
    selector: SelectorConfig = SelectorConfig()
    cluster: ClusterConfig = ClusterConfig()
    toyworld: ToyWorldConfig | None = None
    """Set: the toy world is made (once) and gives questions, MLLM and CLIP where the config names none."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Recipe and overrides only: a variable that happens to be in the environment changes nothing."""
        return (init_settings,)

    @model_validator(mode="after")
    def _possible(self) -> Config:
        problems = list(self._problems())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """What no single field can say, one line each."""
        if self.toyworld is None:
            for field, value in (
                ("data.questions", self.data.questions),
                ("policy.model", self.policy.model),
                ("embedder.model", self.embedder.model),
            ):
                if not value:
                    yield f"{field}: empty, and there is no toyworld to take it from; name one"
        only = ONLY_AGGREGATION.get(self.policy.loss, self.policy.aggregation)
        if self.policy.aggregation != only:
            yield (
                f"policy.aggregation: {self.policy.aggregation} is not that of policy.loss={self.policy.loss}; set {only}"
            )
        if self.train.steps and not self.policy.train and not self.selector.learns:
            yield f"policy.train: false with selector.kind={self.selector.kind} leaves nothing to learn"
        if self.train.group_size * self.train.draws < 2 and (
            self.policy.train or self.sampler.objective != "difficulty"
        ):
            yield "train.group_size: 1 leaves no group to compare with; at least 2"
        if self.train.refills and self.sampler.objective == "difficulty":
            yield "train.refills: with sampler.objective=difficulty a group of equal rewards has signal too; set 0"
        if self.policy.train and self.sampler.objective == "difficulty":
            yield "sampler.objective: difficulty is stage 1, which freezes the MLLM; set policy.train=false"
        if not all(1 <= budget <= self.frames.budget for budget in self.train.validate_budgets):
            yield (
                f"train.validate_budgets: {', '.join(map(str, self.train.validate_budgets))}; each from 1 to "
                f"frames.budget, {self.frames.budget}, which the engine has room for"
            )
        yield from self._card_problems()
        visual = max(
            num_layers(self.frames.budget, self.frames.shown_as) * self.frames.tokens_per_frame,
            (self.frames.num_previews + 1) // 2 * self.frames.preview_tokens_per_frame,
        )
        longest = visual + max(self.rollout.query_tokens, self.rollout.answer_tokens)
        if longest >= self.rollout.max_model_len:
            yield (
                f"rollout.max_model_len: {self.rollout.max_model_len} cannot hold {visual} visual tokens and the reply; "
                f"above {longest}, or a smaller frames.budget or frames.tokens_per_frame"
            )

    def _card_problems(self) -> Iterator[str]:
        """Shares of GPUs that Ray would grant and that cannot work, one line each."""
        for name in ("policy", "sampler", "rollout", "embedder", "selector"):
            if (gpus := getattr(self, name).num_gpus) > 1:
                more = {"policy": "world_size", "sampler": "world_size", "rollout": "tensor_parallel"}
                yield f"{name}.num_gpus: {gpus:g}, but a process computes on one; more by {more.get(name, 'replicas')}"
        for name, learner, learns in (
            ("policy", self.policy, self.policy.train),
            ("sampler", self.sampler, self.selector.learns),
        ):
            if learns and learner.world_size > 1 and 0 < learner.num_gpus <= 0.5:
                yield (
                    f"{name}.num_gpus: {learner.num_gpus:g} lets Ray put two ranks on one GPU, which nccl refuses; above 0.5, "
                    f"or {name}.world_size=1"
                )
        share, taken = self.rollout.num_gpus, self.rollout.gpu_memory_utilization
        if 0 < share < taken:
            yield (
                f"rollout.gpu_memory_utilization: {taken:g} of a GPU of which rollout.num_gpus={share:g} is the engine's; at "
                f"most {share:g}, or a larger share"
            )


def dotted_fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Dotted names of every leaf field."""
    for name, info in model.model_fields.items():
        section = ToyWorldConfig if name == "toyworld" else info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            yield from dotted_fields(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def load_config(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """The recipe with `--section.field=value` overrides on top.

    Raises UserError naming what is wrong and what would be valid.
    """
    try:
        on_top = _overrides(overrides)
    except SettingsError as error:
        unknown = str(error).partition("unrecognized arguments: ")[2].split()
        raise UserError("\n".join(map(_unknown_argument, unknown)) or str(error)) from None
    try:
        return Config(_cli_settings_source=on_top, **read_recipe(recipe))
    except ValidationError as error:
        raise UserError("\n".join([f"{recipe}:", *map(_explain, error.errors())])) from None


def fields_help() -> str:
    """Every field with its type and docstring, as the command line takes it."""
    parser = _overrides([]).root_parser
    parser.usage = "msjoe train [RECIPE] [--run_dir=PATH] [--dry-run] [--SECTION.FIELD=VALUE ...]"
    return parser.format_help()


def _overrides(arguments: Sequence[str]) -> CliSettingsSource[Any]:
    return CliSettingsSource(
        Config, cli_parse_args=list(arguments), cli_exit_on_error=False, cli_prog_name="msjoe train"
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """A YAML recipe as it stands."""
    if not path.is_file():
        shipped = sorted(recipe.name for recipe in RECIPES.glob("*.yaml"))
        raise UserError(f"{path}: no such recipe; the shipped ones in {RECIPES} are {', '.join(shipped)}")
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, not {type(values).__name__}")
    return {str(section): fields for section, fields in values.items()}


def _unknown_argument(argument: str) -> str:
    name = argument.lstrip("-").partition("=")[0]
    return f"{name}: no such field{_suggest(name)}"


def _explain(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"  {name}: no such field{_suggest(name)}"
    message = error["msg"].removeprefix("Value error, ").replace("\n", "\n  ")
    return f"  {name}: {message} (got {error['input']!r})" if name else f"  {message}"


def _suggest(name: str) -> str:
    section = name.rpartition(".")[0]
    fields = list(dotted_fields())
    siblings = [field for field in fields if section and field.startswith(f"{section}.")]
    close = difflib.get_close_matches(name, fields, n=3, cutoff=0.5)
    if siblings:
        return f"; fields of {section}: {', '.join(field.removeprefix(f'{section}.') for field in siblings)}"
    return f"; did you mean {' or '.join(close)}?" if close else "; `msjoe train --help` lists them"
