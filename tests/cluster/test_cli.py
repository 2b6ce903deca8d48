"""The command line itself."""

from __future__ import annotations

import re

import pytest

from cluster.cli import run


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["--version"])
    assert end.value.code == 0
    assert re.fullmatch(r"msjoe \d+\.\d+\.\d+\n", capsys.readouterr().out)
