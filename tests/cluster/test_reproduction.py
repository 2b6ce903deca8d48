"""What the reproduction keeps of runs, and what it says about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.reproduction import CELLS, recipe_hash, run_folder, write


def finished(runs: Path, name: str, seed: int, accuracy: float) -> None:
    """What a run leaves, as far as the table reads it."""
    folder = run_folder(runs, name, seed)
    folder.mkdir(parents=True)
    summary = {"accuracy/after": accuracy, "accuracy/after/4": accuracy - 0.1, "minutes": 2.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    metrics = {"step": 1, "validation/moments_seen": 0.5, "validation/queries_right": 0.75}
    (folder / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with a place for the table, and text around it."""
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "reproduction.md"
    page.write_text("before\n<!-- table -->\n<!-- end of table -->\nbehind\n")
    return page


def test_the_page_says_what_was_found_and_what_was_expected(tmp_path: Path, page: Path) -> None:
    for seed, (uniform, topk, joint) in enumerate([(0.4, 0.6, 0.7), (0.3, 0.6, 0.62)]):
        finished(tmp_path, "uniform", seed, uniform)
        finished(tmp_path, "topk-queries", seed, topk)
        finished(tmp_path, "topk-question", seed, 0.2)
        finished(tmp_path, "joint", seed, joint)
    write(page.parent, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end of table -->\nbehind\n")
    assert "| uniform frames | 35.0 ± 7.1 | 31.0 ± 1.4 | 25.0 ± 7.1 | 50.0 ± 0.0 | 75.0 ± 0.0 | 2 | 0 | 2.0 |" in text
    assert "| joint ≥ uniform frames + 20 | 31.0 ± 1.4 | holds |" in text
    assert "| joint ≥ the best untrained selector + 5 | 6.0 ± 5.7 | holds |" in text
    assert "sampler only + 3" not in text, "that cell has not run"
    finished(tmp_path, "sampler", 0, 0.68)
    write(page.parent, tmp_path)
    assert "| joint ≥ sampler only + 3 | 2.0 | **does not hold** |" in page.read_text()


def test_steadiness_is_the_spread_over_the_worlds_that_both_have_run(tmp_path: Path, page: Path) -> None:
    for seed, (joint, random) in enumerate([(0.7, 0.5), (0.72, 0.6)]):
        finished(tmp_path, "joint", seed, joint)
        finished(tmp_path, "random", seed, random)
    finished(tmp_path, "joint", 2, 0.1)
    write(page.parent, tmp_path)
    assert "| joint steadier than from a random sampler | ± 1.4 against ± 7.1 | holds |" in page.read_text()


def test_results_from_elsewhere_stay_unless_the_cell_has_changed(tmp_path: Path, page: Path) -> None:
    finished(tmp_path / "there", "uniform", 0, 0.4)
    finished(tmp_path / "there", "joint", 0, 0.7)
    write(page.parent, tmp_path / "there")
    record = page.with_suffix(".json")
    known = json.loads(record.read_text())
    known["joint"]["steps"] += 1
    record.write_text(json.dumps(known))
    finished(tmp_path / "here", "uniform", 1, 0.3)
    write(page.parent, tmp_path / "here")
    table = json.loads(record.read_text())
    assert table["uniform"]["K"] == {"0": 0.4, "1": 0.3}
    assert "joint" not in table
    assert table["uniform"]["title"] == CELLS["uniform"].title


def test_cells_of_different_seeds_are_not_compared(tmp_path: Path, page: Path) -> None:
    finished(tmp_path, "uniform", 0, 0.4)
    finished(tmp_path, "joint", 7, 0.7)
    write(page.parent, tmp_path)
    assert "joint ≥" not in page.read_text()


def test_a_recipe_is_known_by_what_decides_its_results() -> None:
    recipe = "policy: {learning_rate: 1.0e-4, num_cpus: 0.4}\ncluster: {object_store_gib: 1.0}\n"
    same = "# a remark\npolicy:\n  zero_stage: 0\n  learning_rate: 0.0001\n"
    assert recipe_hash(recipe) == recipe_hash(same)
    assert recipe_hash(recipe) != recipe_hash(recipe.replace("1.0e-4", "2.0e-4"))
