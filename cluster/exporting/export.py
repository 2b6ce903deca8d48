"""`msjoe export`: the networks of a checkpoint in a folder of their own, as others load them, with a card that says what they
are.

Invariants: the folder appears whole or not at all; the weights are the checkpoint's, byte for byte; the sampler's file is the
one that trained it, and runs with PyTorch, numpy and safetensors alone.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from cluster.config import load_config
from cluster.exporting.card import card
from cluster.pages import render
from cluster.training.run_state import read_state
from learners.config import SamplerConfig
from learners.networks import NETWORKS, make_network
from services.checkpoints import CONFIG, WEIGHTS, find_checkpoint, seal
from services.storage import folder_written_whole

MLLM, SAMPLER, RECIPE, CARD = "mllm", "sampler", "config.yaml", "README.md"
"""What an exported folder holds; besides, `checksums.json` has the SHA-256 of every file."""
SPARE_BYTES = 2**20
"""Room for the files that are not copied."""


def export(named: Path, folder: Path) -> Path:
    """Write the networks of a run's newest whole checkpoint, or of the checkpoint `named`, into `folder`, which is not there or
    is empty. Returns the checkpoint.

    Raises UserError when there is no such checkpoint, when it is damaged, or when `folder` cannot be written.
    """
    checkpoint = find_checkpoint(named)
    state = read_state(checkpoint)
    copies = list(_copies(checkpoint))
    with folder_written_whole(folder, sum(source.stat().st_size for source, _ in copies) + SPARE_BYTES) as temporary:
        for source, name in copies:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temporary / name)
        if (temporary / SAMPLER).is_dir():
            (temporary / SAMPLER / "sampler.py").write_text(sampler_file(state.config["selector"]["kind"]))
        recipe = yaml.safe_dump(dict(state.config), sort_keys=False)
        (temporary / RECIPE).write_text(recipe, encoding="utf-8", errors="backslashreplace")
        run_dir, config = checkpoint.absolute().parents[1], load_config(temporary / RECIPE)
        text = card(temporary, folder.absolute().name, run_dir, state, config)
        (temporary / CARD).write_text(text, encoding="utf-8", errors="backslashreplace")
        seal(temporary)
    return checkpoint


def _copies(checkpoint: Path) -> Sequence[tuple[Path, Path]]:
    """The files to copy, and their names in the exported folder: all of the MLLM, and of the sampler what is no pickle."""
    mllm = [path for path in sorted((checkpoint / "policy").rglob("*")) if path.is_file()]
    sampler = [path for name in (CONFIG, WEIGHTS) if (path := checkpoint / "sampler" / name).is_file()]
    copies = [(path, Path(MLLM) / path.relative_to(checkpoint / "policy")) for path in mllm]
    return [*copies, *((path, Path(SAMPLER) / path.name) for path in sampler)]


def sampler_file(kind: str) -> str:
    """The source of that kind of network, with a function that loads its weights."""
    network = type(make_network(kind, SamplerConfig(), 0))
    source = Path(inspect.getsourcefile(network) or "").read_text()
    return render("sampler_loader.py.j2", network=source, name=network.__name__, fields=NETWORKS[kind].fields)
