"""Memory over the steps of a run: whether any process, or the object store, grows.

    python -m benchmarks.memory --steps 500

Runs `msjoe train` with the toy recipe as a process, and every few seconds reads the memory of each of its processes, by role
(the driver, each class of actors, the decoder, Ray's own), and the use of the object store; a sample takes a quarter of a
second of CPU. The table has, per role, the mean over the first and over the last twentieth of the steps, and the slope by
least squares over the steps after the warm-up, with its standard error; the samples of one step count as one. Further
`--section.field=value` go to the run.

USS: what would be free if the process ended. PSS: that, and its share of the pages that several processes map, so that the sum
over all processes counts each page once. The object store's use is that of Ray's metrics. The store holds the `KEEP` newest
versions of both networks; while another one is published, it is there twice, from the learner and for the readers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from services import jsonl
from services.checkpoints import latest_checkpoint
from services.metrics.jsonl import FILE
from services.weights import KEEP

MEGA = 1e6
EVERYTHING, STORE = "all processes, PSS", "object store"
RAYS_OWN = {"raylet": "raylet", "gcs_server": "GCS"}
USED = re.compile(r"^ray_object_store_used_memory\{.*\} (\S+)$", re.MULTILINE)
REFRESHED = {"RAY_metrics_report_interval_ms": "1000"}
"""Ray's metrics are otherwise as of the last ten seconds."""
Sample = dict[str, float]
"""`step`, the last one that was done, and MB by role."""


def main() -> None:
    """Run, measure, print, and write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--warm-up", type=float, default=0.4, help="share of the steps before the slope's")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of memory.json and memory.svg")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        samples = list(watch(start(run_dir, options.steps, overrides), run_dir, options.every))
        checkpoint = latest_checkpoint(run_dir)
        assert checkpoint is not None
        version = sum((checkpoint / part / "model.safetensors").stat().st_size for part in ("policy", "sampler")) / MEGA
    rows = by_step(samples, options.steps)
    record = {
        "steps": options.steps,
        "overrides": overrides,
        "roles": {role: growth(rows, role, options.steps, options.warm_up * options.steps) for role in roles(rows)},
        "store": {
            "median": float(np.median([sample[STORE] for sample in samples])),
            "highest": max(sample[STORE] for sample in samples),
            "kept": KEEP * version,
            "published": (KEEP + 2) * version,
        },
    }
    (options.out / "memory.json").write_text(json.dumps(record, indent=1) + "\n")
    with matplotlib.rc_context({"svg.hashsalt": "memory"}):
        draw(rows, record["store"]).savefig(options.out / "memory.svg", metadata={"Date": None})
    show(record)


def start(run_dir: Path, steps: int, overrides: Sequence[str]) -> psutil.Popen:
    """The training, which prints into `log` beside its folder."""
    rates = [f"--train.validate_every={max(steps // 10, 1)}", f"--train.checkpoint_every={max(steps // 20, 1)}"]
    command = [sys.executable, "-m", "cluster.cli", "train", f"--run_dir={run_dir}", f"--train.steps={steps}"]
    with run_dir.with_suffix(".log").open("w") as log:
        return psutil.Popen(
            [*command, *rates, *overrides], stdout=log, stderr=subprocess.STDOUT, env=os.environ | REFRESHED
        )


def watch(driver: psutil.Popen, run_dir: Path, every: float) -> Iterator[Sample]:
    """Samples from the first step to the end of the run. Raises RuntimeError with its console when it fails."""
    page = ""
    while driver.poll() is None:
        time.sleep(every)
        with suppress(psutil.NoSuchProcess, OSError, LookupError):  # as when the run ends meanwhile
            if step := max((row["step"] for row in jsonl.read(run_dir / FILE)), default=0):
                page = page or metrics_page(driver)
                yield {"step": step, STORE: object_store(page), **processes(driver)}
    if driver.returncode:
        raise RuntimeError(run_dir.with_suffix(".log").read_text())


def processes(driver: psutil.Popen) -> Sample:
    """MB of all processes of the run: USS by role, and PSS of all together."""
    sample = {EVERYTHING: 0.0}
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            memory, role = process.memory_full_info(), role_of(process, driver)
            sample[role] = sample.get(role, 0.0) + memory.uss / MEGA
            sample[EVERYTHING] += memory.pss / MEGA
    return sample


def role_of(process: psutil.Process, driver: psutil.Process) -> str:
    """What a process of the run is there for."""
    if process.pid == driver.pid:
        return "driver"
    command = " ".join(process.cmdline())
    if actor := re.match(r"ray::(\w+)", command):
        return actor[1]
    name = Path(command.partition(" ")[0]).name
    return RAYS_OWN.get(name, "decoder" if "decode_process" in command else "others")


def metrics_page(driver: psutil.Popen) -> str:
    """Address of the metrics of the run's node, which one of the ports of Ray's agent exports."""
    for process in driver.children(recursive=True):
        if process.cmdline()[0].startswith("ray::DashboardAgent"):
            for port in {one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}:
                page = f"http://127.0.0.1:{port}/metrics"
                with suppress(OSError, HTTPException):
                    if USED.search(read(page)):
                        return page
    raise RuntimeError("Ray exports no metrics here")


def read(page: str) -> str:
    """The text of a page."""
    with urllib.request.urlopen(page, timeout=10) as answer:
        return str(answer.read().decode())


def object_store(page: str) -> float:
    """MB of the object store that are used. Raises LookupError when the page does not say, as while Ray stops."""
    if not (found := USED.search(read(page))):
        raise LookupError(page)
    return float(found[1]) / MEGA


def by_step(samples: Sequence[Sample], steps: int) -> list[Sample]:
    """The mean of the samples of each step that was sampled, the last one, behind which the run ends, left out; 0 where a role
    had no process."""
    rows = []
    for step, some in groupby(samples, itemgetter("step")):
        if step < steps:
            group = list(some)
            roles = dict.fromkeys(role for sample in group for role in sample)
            rows.append({role: float(np.mean([sample.get(role, 0.0) for sample in group])) for role in roles})
    return rows


def growth(rows: Sequence[Sample], role: str, steps: int, warm_up: float) -> dict[str, float]:
    """MB of a role over the first and the last twentieth of the steps, and MB per 100 steps after the warm-up with their
    standard error."""
    step, size = (np.array([row.get(name, 0.0) for row in rows]) for name in ("step", role))
    late = step > warm_up
    x, y = step[late] - step[late].mean(), size[late]
    slope = (x @ y) / (x @ x)
    residuals = y - y.mean() - slope * x
    error = np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x))
    edge = max(steps / 20, step[0])
    return {
        "start": float(size[step <= edge].mean()),
        "end": float(size[step >= step[-1] - edge].mean()),
        "slope": float(100 * slope),
        "error": float(100 * error),
    }


def show(record: Mapping[str, Any]) -> None:
    """Print the table."""
    table = Table("MB", "start", "end", "per 100 steps", title=f"memory over {record['steps']} steps")
    for role, found in record["roles"].items():
        slope = f"{found['slope']:+.2f} ± {found['error']:.2f}"
        table.add_row(role, f"{found['start']:.1f}", f"{found['end']:.1f}", slope)
    Console().print(table)
    print(
        "object store: {median:.1f} MB in the median, {highest:.1f} MB at most; the versions that are kept take {kept:.1f} MB, "
        "and {published:.1f} MB while another one is published".format_map(record["store"])
    )


def draw(rows: Sequence[Sample], store: Mapping[str, float]) -> Figure:
    """USS by role above, and the use of the object store below, over the steps."""
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    step = [row["step"] for row in rows]
    for place, role in enumerate(roles(rows)[:-2]):
        above.plot(step, [row.get(role, np.nan) for row in rows], lw=1.2, color=f"C{place % 10}", label=role)
        above.lines[-1].set_linestyle("-" if place < 10 else "--")
    above.set_yscale("log")
    above.set_ylabel("USS, MB")
    above.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=7.5)
    below.plot(step, [row[STORE] for row in rows], lw=1.2, color="#0072B2", label="used")
    below.axhline(store["kept"], color="#8A8F98", lw=1, label=f"{KEEP} versions of the weights")
    below.axhline(store["published"], color="#8A8F98", lw=1, ls="--", label="and one being published")
    below.set_ylim(bottom=0)
    below.set_ylabel("object store, MB")
    below.set_xlabel("step")
    below.legend(frameon=False, loc="lower right", ncols=3, fontsize=7.5)
    for axes in (above, below):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def roles(rows: Sequence[Sample]) -> list[str]:
    """All that was sampled, the largest first, then the sum and the object store."""
    names = {name for row in rows for name in row} - {"step", EVERYTHING, STORE}
    return [*sorted(names, key=lambda name: -rows[-1].get(name, 0.0)), EVERYTHING, STORE]


if __name__ == "__main__":
    main()
