"""`RolloutActor`: one vLLM engine; a turn in, tokens and log-probs out.

Invariants: the engine runs on one thread and batches whatever is in flight; frames become patches on another one, so no step
waits for them; requests and weight updates are served in the order they came, and an update waits until every earlier request
has finished, so no sample mixes two versions. After an update every cache that the old weights filled is dropped. Pixels are
read here, from the frame cache, and go no further.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from pydantic import ValidationError
from ray.actor import ActorHandle

from actors.config import RolloutConfig
from actors.engine_loop import EngineLoop
from actors.supervised import Pooled
from services.chat import Chat, Message
from services.config import DataConfig, FramesConfig
from services.errors import QuestionError, TrainingError, UserError
from services.frames import FrameCache
from services.probes import beside_work
from services.schema import Turn, VisualInput
from services.vision import PROCESSOR_KWARGS, engine_items, engine_names
from services.visual import read_visual
from services.weights import POLICY, newest_version

PREFILL_TOKENS = 8192
"""Prompt tokens of one engine step, at least."""
SHOWN = 40
"""Characters of a reply that an error shows."""


def engine_env(config: RolloutConfig) -> dict[str, str]:
    """Environment of the actor's process and of its workers'; vLLM reads it when it is imported."""
    workers = {"VLLM_RAY_BUNDLE_INDICES": ",".join(map(str, range(1, 1 + config.tensor_parallel)))}
    on_cpu = {
        "TORCHDYNAMO_DISABLE": "1",  # some functions of vLLM are compiled at their first call, eager or not
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",  # kernels, one per shape, of half a megabyte; oneDNN keeps 1,024
    }
    return {
        **(workers if config.tensor_parallel > 1 else {}),
        **({} if config.num_gpus else on_cpu),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.cpu_kv_cache_gib))),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(config.threads),
    }


class RolloutActor(Pooled):
    """One engine behind an async interface; many calls in flight share its batch. Its arguments are those of `_start`."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def _start(
        self,
        model: str,
        dtype: Any,
        config: RolloutConfig,
        data: DataConfig,
        frames: FramesConfig,
        store: ActorHandle,
        store_name: str,
    ) -> None:
        from vllm import EngineArgs, SamplingParams
        from vllm.config import WeightTransferConfig
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.llm_engine import LLMEngine

        from services.weight_transfer import BACKEND

        self._config, self._params, self._refusal = config, SamplingParams, VLLMValidationError
        self._frames, self._chat = FrameCache.of(data, frames), Chat.of(model)
        on_cpu = config.num_gpus == 0
        with_ray = "actors.cpu_executor.CpuRayExecutor" if on_cpu else "ray"
        try:
            engine = LLMEngine.from_engine_args(
                EngineArgs(
                    model=model,
                    dtype=dtype,
                    tensor_parallel_size=config.tensor_parallel,
                    distributed_executor_backend="uni" if config.tensor_parallel == 1 else with_ray,
                    worker_extension_cls="services.weight_transfer.WeightTransferExtension",
                    weight_transfer_config=WeightTransferConfig(backend=BACKEND),
                    max_model_len=config.max_model_len,
                    max_num_seqs=config.max_num_seqs,
                    gpu_memory_utilization=config.gpu_memory_utilization,
                    enforce_eager=on_cpu,
                    skip_mm_profiling=on_cpu,
                    # A prompt cut into chunks rewinds its seeded generator, which the CPU's cannot do.
                    enable_chunked_prefill=not on_cpu,
                    max_num_batched_tokens=max(config.max_model_len, PREFILL_TOKENS),
                    limit_mm_per_prompt={"image": frames.budget if frames.shown_as == "images" else 0, "video": 1},
                    mm_processor_kwargs=PROCESSOR_KWARGS,
                    mm_processor_cache_gb=0,  # its two halves would have to see all requests in one order
                    logprobs_mode="processed_logprobs",
                    generation_config="vllm",
                )
            )
        except ValueError as error:  # which is how vLLM says that a setting does not fit the model or the machine
            said = [one["msg"] for one in error.errors()] if isinstance(error, ValidationError) else [str(error)]
            raise UserError(f"vLLM refuses what rollout and policy.model ask for: {'; '.join(said)}") from error
        # An engine that has lost a worker is of no use: the process ends with it, and the pool replaces both.
        engine.model_executor.register_failure_callback(lambda: os._exit(1))
        engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {"store": store_name}})
        self._loop = EngineLoop(engine)
        # One thread keeps the order, and the processors are made for one.
        self._preparing = ThreadPoolExecutor(1, "preparing")
        self._set_version(0)
        if newest := newest_version(store, POLICY, config.deadline):  # training has begun before this actor
            self._update(newest)

    async def ready(self) -> int:
        """Start the engine, with the newest weights if there are any; the version it holds."""
        await asyncio.to_thread(self._start, *self._arguments)  # vLLM runs event loops of its own
        return self.version

    @beside_work
    def progress(self) -> int:
        """Rounds of the engine's loop."""
        return self._loop.rounds

    async def check(self, messages: list[Message], visual: VisualInput | None) -> int:
        """Tokens of the prompt. Raises QuestionError when they leave no room for a reply within `max_model_len`."""
        ids = await asyncio.wrap_future(self._preparing.submit(self._chat.encode, messages))
        count = len(ids) + (visual.num_tokens - visual.num_items if visual else 0)
        if count >= self._config.max_model_len:
            raise QuestionError(f"its prompt has {count} tokens; rollout.max_model_len={self._config.max_model_len}")
        return count

    async def generate(
        self, messages: list[Message], visual: VisualInput | None, max_tokens: int, seed: int | None
    ) -> Turn:
        """One reply to `messages`: sampled with its own `seed`, or the most probable tokens when it is None.

        Raises QuestionError when the prompt does not fit `max_model_len`, TrainingError when a log-prob is not finite.
        """
        params = self._params(
            temperature=0.0 if seed is None else self._config.temperature,
            max_tokens=max_tokens, seed=seed, logprobs=0, skip_special_tokens=True,
        )  # fmt: skip
        try:
            output = await self._in_order(lambda: self._loop.generate(self._prompt(messages, visual), params))
        except self._refusal as error:
            raise QuestionError(
                f"the engine refuses the prompt: {error} (rollout.max_model_len is the limit)"
            ) from error
        reply = output.outputs[0]
        log_probs = [step[token].logprob for step, token in zip(reply.logprobs, reply.token_ids, strict=True)]
        version = int(reply.weight_versions[0].version)
        if not np.isfinite(log_probs).all():
            raise TrainingError(
                f"the engine's log-probs of the reply {reply.text[:SHOWN]!r} are not finite: weights of version {version} "
                "hold numbers that are not, or too large"
            )
        return Turn(
            prompt_ids=np.asarray(output.prompt_token_ids, np.int32),
            response_ids=np.asarray(reply.token_ids, np.int32),
            log_probs=np.asarray(log_probs, np.float32),
            text=reply.text,
            truncated=reply.finish_reason == "length",
            version=version,
            visual=visual,
        )

    async def pull(self, version: int) -> int:
        """Take `version` in, after every request already in flight; returns it."""
        await self._in_order(lambda: self._loop.call(lambda: self._update(version)))
        return self.version

    async def _in_order(self, send: Callable[[], Future]) -> Any:
        """The result of what `send` asks of the engine, after all that was asked before."""
        sent: Future[Future] = self._preparing.submit(send)
        try:
            running: Future = await asyncio.wrap_future(sent)
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            sent.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result().cancel())
            raise

    def _prompt(self, messages: list[Message], visual: VisualInput | None) -> Any:
        """The engine's input: token ids, and the patches of the frames."""
        prompt: dict[str, Any] = {"prompt_token_ids": self._chat.encode(messages)}
        if visual is not None:
            prompt["multi_modal_data"] = engine_items(read_visual(self._frames, visual), visual)
            prompt["multi_modal_uuids"] = engine_names(visual)
        (rendered,) = self._loop.engine.renderer.render_cmpl([prompt])
        return rendered

    def _update(self, version: int) -> None:
        engine = self._loop.engine
        engine.collective_rpc("start_weight_update")
        engine.collective_rpc("update_weights", kwargs={"update_info": {"version": version}})
        engine.collective_rpc("finish_weight_update")
        if not engine.reset_prefix_cache():
            raise TrainingError(f"the engine keeps a prefix cache of weights older than version {version}")
        engine.reset_mm_cache()
        engine.reset_encoder_cache()
        self._set_version(version)

    def _set_version(self, version: int) -> None:
        self._loop.engine.set_weight_version(str(version))
        self.version = version
