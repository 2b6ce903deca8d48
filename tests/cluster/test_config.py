"""Configs: recipes load, overrides win, mistakes are named with what would be valid, every field is documented."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from cluster.cli import TOY, run
from cluster.config import RECIPES, Config, dotted_fields, fields_help, load_config
from cluster.dry_run import estimate, training_bytes
from cluster.read_yaml import read_yaml
from cluster.training.placement import Bundle, misfits, plan
from learners.config import PolicyConfig
from services.errors import UserError


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(recipe: Path) -> None:
    config = load_config(recipe)
    assert Config(**config.model_dump()) == config


def test_overrides_win_over_the_recipe_and_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY", '{"clip_low": 0.9}')
    config = load_config(
        TOY,
        [
            *("--policy.learning_rate=1e-5", "--policy.zero_stage=3", "--sampler.channels=[8,16]", "--toyworld.seed=3"),
            "--rewards.extra=[mine.py:brevity, more/yours.py:early]",
        ],
    )
    assert config.policy.learning_rate == 1e-5
    assert config.policy.zero_stage == 3
    assert config.policy.clip_low == 0.2
    assert config.sampler.channels == (8, 16)
    assert config.rewards.extra == ("mine.py:brevity", "more/yours.py:early")
    assert config.toyworld is not None
    assert (config.toyworld.seed, config.toyworld.videos) == (3, 48)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--policy.lr=1"], "policy.lr: no such field; fields of policy: num_cpus, num_gpus"),
        (["--polcy.learning_rate=1"], "did you mean policy.learning_rate"),
        (["--train.trackers=[comet]"], "Input should be 'tensorboard', 'wandb' or 'mlflow'"),
        (["--frames.budget=0"], "frames.budget: Input should be greater than or equal to 1"),
        (["--policy.clip_low=x"], "policy.clip_low: Input should be a valid number"),
        (
            ["--train.refills=2", "--sampler.objective=difficulty", "--policy.train=false"],
            "train.refills: with sampler",
        ),
        (["--policy.learning_rate=inf"], "policy.learning_rate: Input should be a finite number"),
        (["--sampler.learning_rate=2"], "sampler.learning_rate: Input should be less than or equal to 1"),
        (["--policy.dtype=bfloat16"], "policy: zero_stage 0 would add up bfloat16 gradients in bfloat16; zero_stage=1"),
        (["--policy.dual_clip=1"], "policy.dual_clip: Input should be greater than 1"),
        (
            ["--policy.loss=gspo"],
            "policy.aggregation: token-mean is not that of policy.loss=gspo; set seq-mean-token-mean",
        ),
        (
            ["--policy.loss=ppo"],
            "policy.loss: one of clipped, gspo, or a function of your own: path/to/file.py:function",
        ),
        (["--policy.advantage=gae"], "policy.advantage: Input should be 'grpo', 'dr_grpo' or 'rloo'"),
        (["--policy.aggregation=mean"], "policy.aggregation: Input should be 'token-mean', 'seq-mean-token-mean' or"),
        (
            ["--train.group_size=1", "--train.draws=1"],
            "train.group_size: 1 leaves no group to compare with; at least 2",
        ),
        (["--policy.train=false", "--selector.kind=uniform"], "leaves nothing to learn"),
        (
            ["--selector.kind=best"],
            "selector.kind: Input should be 'unet', 'tspo', 'uniform', 'topk', 'bin-max', 'bolt', 'bolt-longvideobench', "
            "'aks', 'aks-longvideobench', 'qframe' or 'tcs'",
        ),
        (["--sampler.objective=difficulty"], "sampler.objective: difficulty is stage 1"),
        (["--rollout.max_model_len=40"], "rollout.max_model_len: 40 cannot hold 16 visual tokens"),
        (["--train.validate_budgets=[4, 9]"], "train.validate_budgets: 4, 9; each from 1 to frames.budget, 8"),
        (["--policy.world_size=2", "--policy.num_gpus=0.5"], "policy.num_gpus: 0.5 lets Ray put two ranks on one GPU"),
        (["--sampler.world_size=3", "--sampler.num_gpus=0.1"], "above 0.5, or sampler.world_size=1"),
        (["--embedder.num_gpus=2"], "embedder.num_gpus: 2, but a process computes on one; more by replicas"),
        (["--rollout.num_gpus=0.5"], "rollout.gpu_memory_utilization: 0.85 of a GPU of which rollout.num_gpus=0.5 is"),
        (["--toyworld.min_seconds=700"], "min_seconds 700 is above max_seconds 150"),
        (["--rewards.extra=[mine.py]"], "rewards.extra.0: String should match pattern"),
        (["--rewards.accuracy=0", "--rewards.format=0", "--rewards.info=0"], "nothing can be learned"),
    ],
)
def test_mistakes_name_the_field_and_what_is_valid(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(TOY, overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy: {lr: 1}", "policy.lr: no such field"),
        ("policy: [", "not valid YAML"),
        ("- 1", "a recipe is a mapping"),
        ("train: {steps: 3}", "policy.model: empty, and there is no toyworld"),
    ],
)
def test_recipes_that_cannot_work(text: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(recipe)
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "policy:\n  clip_low: 0.1\ntrain: {steps: 5}\npolicy:\n  lora_rank: 4\n",
            "line 4: 'policy' stands already in line 1",
        ),
        ("train: {steps: 5,\n  steps: 6}", "line 2: 'steps' stands already in line 1"),
        ("policy: {clip_low: 0.1, 'clip_low': 0.2}", "line 1: 'clip_low' stands already in line 1"),
        ("train: {steps: 10:30}", "train.steps: Input should be a valid integer"),
        ("train: {steps: 0o17}", "train.steps: Input should be a valid integer"),
        ("train: {steps: 0x1F}", "train.steps: Input should be a valid integer"),
        ("rollout: {temperature: 1:30.5}", "rollout.temperature: Input should be a valid number"),
        ("rollout: {temperature: .inf}", "rollout.temperature: Input should be a finite number"),
        ("rewards: {info: .nan}", "rewards.info: Input should be a finite number"),
        ("policy: {model: yes, lora_rank: on}", "policy.lora_rank: Input should be a valid integer"),
        ("1: {steps: 3}", "1: no such field"),
        ('policy: {model: "\\xff"', "not valid YAML"),
    ],
)
def test_nothing_in_a_recipe_becomes_something_else_in_silence(text: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"{text}\ntoyworld: {{}}\n")
    with pytest.raises(UserError) as caught:
        load_config(recipe)
    assert message in str(caught.value)


def test_values_of_a_recipe_are_what_they_look_like(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "toyworld: {seed: 0123, videos: 1_000}\n"
        "policy: &policy {model: no, num_parameters: 1e9, dual_clip: .inf, train: false, learning_rate: .5e-6}\n"
        "data: {questions: 2026-01-01, validation: 1:30, video_root: null, bucket: '10'}\n"
    )
    config = load_config(recipe)
    assert config.toyworld is not None
    assert (config.toyworld.seed, config.toyworld.videos) == (123, 1000)
    assert (config.policy.model, config.policy.train) == ("no", False)
    assert (config.policy.num_parameters, config.policy.dual_clip, config.policy.learning_rate) == (1e9, math.inf, 5e-7)
    assert (config.data.questions, config.data.validation) == (Path("2026-01-01"), Path("1:30"))
    assert (config.data.video_root, config.data.bucket) == (None, "10")


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: &base {a: 1, b: 2}\nmore: {inner: &inner {<<: *base, a: 3}}\nlast: {<<: *inner, b: 4}\n")
    assert read_yaml(file)["last"] == {"a": 3, "b": 4}


@pytest.mark.parametrize("seed", ["-1", str(2**63), "1.5"])
@pytest.mark.parametrize("field", ["train.seed", "toyworld.seed"])
def test_seeds_that_no_random_stream_takes(field: str, seed: str) -> None:
    with pytest.raises(UserError, match=f"{field}: .*") as caught:
        load_config(TOY, [f"--{field}={seed}"])
    assert "seeds from 0 to 2^63 - 1" in str(caught.value) or "valid integer" in str(caught.value)
    assert load_config(TOY, [f"--{field}={2**63 - 1}"])


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every field that names a file or a folder, given by a recipe, an override or the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MSJOE_CACHE", "~/cache")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("toyworld: {}\ndata: {questions: ~/q.jsonl}\npolicy: {model: ~/mllm}\n")
    config = load_config(
        recipe,
        ["--data.video_root=~", "--sampler.checkpoint=~/s", "--embedder.model=~/clip", "--embedder.pretrained=~/w"],
    )
    assert (config.data.cache, config.data.questions) == (tmp_path / "cache", tmp_path / "q.jsonl")
    assert (config.data.video_root, config.sampler.checkpoint) == (tmp_path, tmp_path / "s")
    assert (config.policy.model, config.embedder.model) == (f"{tmp_path}/mllm", f"{tmp_path}/clip")
    assert config.embedder.pretrained == f"{tmp_path}/w"
    assert load_config(TOY, ["--data.questions=~/a~b"]).data.questions == tmp_path / "a~b"


def test_a_tilde_in_an_option_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for arguments in (["report", "~/there"], ["questions", "~/there"], ["train", "~/there"], ["prepare", "~/there"]):
        assert run(arguments) == 2
        assert f"{tmp_path}/there" in capsys.readouterr().err


def leaves(model: type[BaseModel]) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for name, field in model.model_fields.items():
        section: Any = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found += leaves(section)
        else:
            found.append((name, field.description))
    return found


def test_every_field_has_a_docstring_and_stands_in_the_help() -> None:
    undocumented = {name for name, text in leaves(Config) if not text}
    assert not undocumented
    text = fields_help()
    assert not [field for field in dotted_fields() if f"--{field}" not in text]


def test_the_plan_holds_one_bundle_an_actor() -> None:
    config = load_config(RECIPES / "qwen2_5_vl_7b.yaml")
    bundles = [bundle for group in plan(config) for bundle in group]
    assert Counter(bundle.role for bundle in bundles) == {
        "rollout": 3,
        "embedder": 1,
        "selector": 1,
        "policy": 4,
        "sampler": 1,
    }
    assert sum(bundle.num_gpus for bundle in bundles) <= 8
    assert sorted(map(len, plan(config))) == [1, 1, 1, 1, 1, 5], "the learners are a gang, all others alone"
    acting = plan(config, ["selectors", "embedders", "rollouts"])
    assert acting == [group for group in plan(config) if group[0].role != "policy"], "the order is the plan's"
    assert {group[0].role for group in plan(config, ["rollouts"])} == {"rollout"}
    stage_1 = load_config(TOY, ["--policy.train=false"])
    assert "policy" not in [bundle.role for group in plan(stage_1) for bundle in group]


def test_each_engine_has_bundles_of_its_own_for_its_workers() -> None:
    config = load_config(RECIPES / "qwen2_5_vl_7b.yaml", ["--rollout.tensor_parallel=2", "--rollout.replicas=2"])
    engines = [group for group in plan(config) if group[0].role == "rollout"]
    worker = Bundle("rollout worker", 8, 1)
    assert engines == [(Bundle("rollout", 8, 0), worker, worker)] * 2


@pytest.mark.parametrize("mistake", ["--rollout.num_gpus=2", "--rollout.num_gpus=0.5", "--rollout.num_gpus=0"])
def test_a_worker_has_one_gpu_or_one_cpu(mistake: str) -> None:
    with pytest.raises(UserError, match="tensor_parallel=2: a worker has num_gpus=1, or on CPU num_gpus=0 and at most"):
        load_config(RECIPES / "qwen2_5_vl_7b.yaml", ["--rollout.tensor_parallel=2", mistake])


def test_the_temperature_is_one_the_engine_samples_at() -> None:
    """Below it the engine samples at 0.01 while the learner divides by what was given."""
    with pytest.raises(UserError, match="rollout.temperature"):
        load_config(TOY, ["--rollout.temperature=0.005"])
    assert load_config(TOY, ["--rollout.temperature=0.01"]).rollout.temperature == 0.01


def test_bundles_that_fit_nowhere_are_named() -> None:
    bundles = [Bundle("policy", 4, 1), Bundle("rollout", 64, 0), Bundle("rollout", 64, 0)]
    nodes = [{"CPU": 32.0}, {"CPU": 8.0, "GPU": 4.0}]
    assert misfits(bundles, nodes) == [Bundle("rollout", 64, 0)]
    assert misfits(bundles, []) == [Bundle("policy", 4, 1), Bundle("rollout", 64, 0)]


def test_memory_of_a_rank_by_zero_stage() -> None:
    config = PolicyConfig(model="m", world_size=4)
    by_stage = [training_bytes(1.0, 1.0, 2, config.model_copy(update={"zero_stage": stage})) for stage in (1, 2, 3)]
    assert by_stage == [3 + 4 + 2, 3 + 1 + 2, 3 + 1 + 0.5]
    replicated = PolicyConfig(model="m", world_size=4, dtype="float32", zero_stage=0)
    assert training_bytes(1.0, 1.0, 4, replicated) == 8 + 4 + 4
    assert training_bytes(1.0, 0.1, 2, config) == pytest.approx(0.1 * (3 + 4) + 2), "frozen weights have no state"
    assert training_bytes(1.0, 1.0, 4, replicated.model_copy(update={"kl_coef": 0.1})) == 8 + 4 + 2 * 4


def test_the_estimate_reads_the_models_own_config(toy_config: Config) -> None:
    rows = {what: (size, how) for what, size, how in estimate(toy_config)}
    size, how = rows["policy rank, each of 1"]
    assert "by the model's config" in how
    weights = 2 * (Path(toy_config.policy.model) / "model.safetensors").stat().st_size  # bfloat16 there, float32 here
    assert size == pytest.approx(4 * weights, rel=0.02), "weights, gradients and two moments in float32"
    lora = toy_config.model_copy(update={"policy": toy_config.policy.model_copy(update={"lora_rank": 2})})
    adapted = next(size for what, size, _ in estimate(lora) if what.startswith("policy rank"))
    assert adapted is not None
    assert weights < adapted < 1.3 * weights


def test_a_dump_is_yaml() -> None:
    config = load_config(TOY)
    assert yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))["frames"]["budget"] == 8


def test_a_value_may_hold_a_blank(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--dry-run", "--frames.shown_as=a video"]) == 2
    assert "(got 'a video')" in capsys.readouterr().err
