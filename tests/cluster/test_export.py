"""`msjoe export`: whole or not at all, loaded by others without this project, and described by its card."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cluster.cli import TOY, run
from cluster.config import load_config
from cluster.resolve import resolve
from cluster.toyworld import MODELS, toy_world
from cluster.toyworld.config import ToyWorldConfig
from cluster.training.run_state import RunState
from learners.networks import NETWORKS, Seen, architecture, make_network
from services import jsonl
from services.checkpoints import damage, save_sampler, seal
from tests.full_disk import full_disk
from tests.learners.turns import load_plain

STEP = 7
ALONE = """
import json, sys
import numpy as np

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "transformers", "vllm", "deepspeed", "services", "learners", "actors", "cluster"}:
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from sampler.sampler import collate, load
seen = np.load(sys.argv[2])
with torch.no_grad():
    logits = load(f"{sys.argv[1]}/sampler")(collate(*([seen[name]] for name in seen.files)))
np.save(sys.argv[3], logits.numpy())
exec(sys.argv[4])
print(json.dumps(seconds))
"""
"""Runs the sampler of the folder argv[1] on the arrays of argv[2], and then the card's own lines."""


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run's folder with one checkpoint, of a sampler that is far from fresh, and what was measured at it."""

    def of(kind: str = "unet", *overrides: str) -> Path:
        questions = toy_world(ToyWorldConfig(), tmp_path).questions
        given = [f"--selector.kind={kind}", f"--data.cache={tmp_path}", f"--data.questions={questions}"]
        config = resolve(load_config(TOY, [*given, *overrides]), None)
        folder = tmp_path / "runs" / kind
        step = folder / "checkpoints" / f"step-{STEP:06d}"
        shutil.copytree(MODELS / "mllm", step / "policy")
        (step / "sampler" / "rllib").mkdir(parents=True)
        (step / "sampler" / "rllib" / "module_state.pkl").write_bytes(b"a pickle")
        network = make_network(kind, config.sampler, 3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
        save_sampler(step / "sampler", architecture(kind, config.sampler), network.state_dict())
        state = RunState.start(config, {})
        measured = {"step": STEP, "accuracy": 0.75, "accuracies": {"before": 0.5, "uniform": 0.25}}
        RunState(**vars(state) | measured).write(step)
        seal(step)
        jsonl.append(folder / "validation.jsonl", [{"step": step} for step in (0, 0, STEP, STEP, STEP)])
        jsonl.append(folder / "metrics.jsonl", [{"step": STEP, "reward/total": 0.625, "validation/not_asked": 1.0}])
        return folder

    return of


def seal_again(step: Path) -> None:
    (step / "checksums.json").unlink()
    seal(step)


@pytest.fixture
def published(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """The exported folder of a run of the toy recipe."""
    assert run(["export", str(make_run()), str(tmp_path / "published")]) == 0
    return tmp_path / "published"


def lines(card: str, what: str) -> str:
    """The Python of the card that mentions `what`."""
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if what in block]
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_sampler_runs_without_this_project(kind: str, make_run: Callable[..., Path], tmp_path: Path) -> None:
    width = 64
    run_dir, folder = make_run(kind, f"--sampler.width={width}"), tmp_path / "published"
    assert run(["export", str(run_dir), str(folder)]) == 0
    assert sorted(path.name for path in (folder / "sampler").iterdir()) == [
        "config.json", "model.safetensors", "sampler.py"
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    frames, queries = (rng.normal(size=(count, width)).astype(np.float32) for count in (70, 3))
    seen = Seen((0.2 + 0.05 * rng.standard_normal((3, 70))).astype(np.float32), queries, frames)
    arrays = {"similarity": seen.similarity} | ({"frames": frames, "queries": queries} if kind == "tspo" else {})
    np.savez(tmp_path / "seen.npz", **arrays)
    files = [str(tmp_path / name) for name in ("published", "seen.npz", "logits.npy")]
    card = lines((folder / "README.md").read_text(), "sampler.sampler")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *files, card], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 8
    config = load_config(folder / "config.yaml").sampler
    network = make_network(kind, config, 0, run_dir / "checkpoints" / f"step-{STEP:06d}" / "sampler")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = network(NETWORKS[kind].collate([seen])).numpy()
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)
    assert expected.std() > 1e-3


def test_the_mllm_loads_as_the_card_says(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(published)
    names: dict = {}
    exec(lines((published / "README.md").read_text(), "transformers"), names)
    assert names["processor"].tokenizer.chat_template
    expected = load_plain(MODELS / "mllm").state_dict()
    state = names["model"].state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def test_the_card_says_what_is_there(published: Path) -> None:
    card = (published / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and "license" not in front and "# license: name" in card
    assert "**Toy.** Of msjoe's toy world are: questions, MLLM, CLIP." in card
    assert str(published.parent) not in card
    for part in (
        "# published\n",
        "| these networks (step 7) | 0.750 [0.301, 0.954] over 4 questions |",
        "| before training | 0.500 [0.150, 0.850] over 4 questions |",
        "| reward | 0.625 |",
        "Answer with the letter of the right option as <answer>X</answer>.",
        "`sampler/` | the sampler (`unet`, ",
    ):
        assert part in card
    assert damage(published) is None
    assert load_config(published / "config.yaml").frames.budget == 8


def test_a_real_run_is_called_real(make_run: Callable[..., Path], tmp_path: Path) -> None:
    step = make_run() / "checkpoints" / f"step-{STEP:06d}"
    state = json.loads((step / "state.json").read_text())
    state["config"] |= {"toyworld": None}
    state["config"]["data"]["questions"] = "/data/mine.parquet"
    state["config"]["policy"] |= {"model": "Qwen/Qwen2.5-VL-7B-Instruct", "lora_rank": 8}
    state["config"]["embedder"]["model"] = "ViT-L-14-quickgelu"
    (step / "state.json").write_text(json.dumps(state))
    seal_again(step)
    assert run(["export", str(step), str(tmp_path / "real")]) == 0
    card = (tmp_path / "real" / "README.md").read_text()
    assert "**Real.** Trained on `mine.parquet`" in card and "**Toy.**" not in card
    assert "\nbase_model: Qwen/Qwen2.5-VL-7B-Instruct\n" in card and "LoRA adapters are merged" in card


def test_whole_or_not_at_all(make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, folder = make_run(), tmp_path / "published"
    with full_disk(100_000):
        assert run(["export", str(run_dir), str(folder)]) == 2
    assert re.search(r"published: cannot be written \(File too large\); free some room", capsys.readouterr().err)
    assert not [path for path in tmp_path.iterdir() if "published" in path.name]
    folder.mkdir()
    assert run(["export", str(run_dir), str(folder)]) == 0, "an empty folder is as good as none"
    assert run(["export", str(run_dir), str(folder)]) == 2
    assert "published: holds something already; name a new folder" in capsys.readouterr().err
    (run_dir / "checkpoints" / f"step-{STEP:06d}" / "sampler" / "model.safetensors").write_bytes(b"")
    assert run(["export", str(run_dir), str(tmp_path / "other")]) == 2
    assert "the run has no whole checkpoint; name another" in capsys.readouterr().err
    assert run(["export", str(tmp_path), str(tmp_path / "other")]) == 2
    assert "is neither a run's folder nor one of its checkpoints/step-N" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_was_not_trained_is_not_there(make_run: Callable[..., Path], tmp_path: Path) -> None:
    step = make_run() / "checkpoints" / f"step-{STEP:06d}"
    shutil.rmtree(step / "policy")
    seal_again(step)
    assert run(["export", str(step), str(tmp_path / "sampler alone")]) == 0
    card = (tmp_path / "sampler alone" / "README.md").read_text()
    assert "| the MLLM | was not trained: it is `" in card
    assert not (tmp_path / "sampler alone" / "mllm").exists()
