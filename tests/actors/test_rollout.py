"""A rollout actor's engine; what it serves is tested where a whole step is (`tests/end_to_end/test_step.py`)."""

from __future__ import annotations

import asyncio
from types import ModuleType

import pytest

from actors.rollout import RolloutActor
from cluster.config import Config
from services.errors import UserError


def test_an_engine_that_vllm_refuses_is_said_without_a_traceback(vllm: ModuleType, toy_config: Config) -> None:
    """The toy MLLM has 8,192 positions."""
    rollout = toy_config.rollout.model_copy(update={"max_model_len": 10**6})
    actor = RolloutActor(
        toy_config.policy.model, toy_config.policy.dtype, rollout, toy_config.data, toy_config.frames, None, "nowhere"
    )
    with pytest.raises(UserError, match=r"^vLLM refuses .*max_model_len \(1000000\) is greater than .*8192") as caught:
        asyncio.run(actor.ready())
    assert "validation error" not in str(caught.value)
