"""The Python interface: `with llmc.load("model.llmc") as model: model.generate("…")`."""

from __future__ import annotations

import hashlib
import inspect
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from ..errors import RequestError, UsageError, nearest
from .artifact import Artifact, open_artifact
from .blocks import BlockPool
from .config import RunConfig
from .engine import Engine, Event, FinishEvent, Request, TokenEvent
from .executors.choose import driver_module, is_gpu, target_entry
from .executors.cpu import CpuExecutor
from .plan import reaches
from .sampling import SamplingParams
from .scheduler import Scheduler
from .states import StatePool
from .tokenizer import ArtifactTokenizer

if TYPE_CHECKING:
    from .executors.launch import LaunchExecutor
    from .executors.split import SplitExecutor

Prompt = str | Sequence[int]
Logits = npt.NDArray[np.float32]


@dataclass
class Generation:
    """A finished completion. `text` is None for an artifact without a tokenizer; `token_ids` includes a final end token."""

    text: str | None
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    finish_reason: str = "length"


class Model:
    """A loaded artifact. Owns the executor, the cache and the engine; use as a context manager, or call `close()`. Not thread-safe."""

    def __init__(self, artifact: Artifact, config: RunConfig) -> None:
        self.artifact = artifact
        self.config = config
        self._closed = False
        self.tokenizer = ArtifactTokenizer(artifact)
        self.executor = _open_executor(artifact, config)
        self.executor.portable(config.portable)
        self.engine = self.new_engine()

    def new_engine(self, max_tokens: int | None = None) -> Engine:
        """A fresh engine on the same executor, with an empty cache."""
        scheduler = Scheduler(
            BlockPool(self.config.blocks, reaches(self.artifact.manifest)),
            StatePool(self.config.slots, self.executor.copy_state),
            max_tokens=max_tokens or self.config.max_tokens,
            max_sequences=self.config.max_batch,
            max_rows=self.config.max_rows,
            context=self.config.context,
            mixed_tokens=self.executor.mixed_tokens,
            max_waiting=1 << 20,
        )
        return Engine(self.executor, scheduler)

    def encode(self, prompt: Prompt) -> npt.NDArray[np.int32]:
        """Token ids of a prompt; raises RequestError for ids outside the vocabulary."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        vocabulary = self.executor.vocabulary
        if any(not isinstance(i, int | np.integer) or not 0 <= i < vocabulary for i in ids):
            raise RequestError(f"a token id is outside the vocabulary of {vocabulary}", param="prompt")
        return np.array(ids, np.int32)

    def params(
        self,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        **unknown: object,
    ) -> SamplingParams:
        """Sampling settings with this model's end tokens; temperature 0 is greedy. Raises RequestError for what is impossible."""
        if unknown:
            name = next(iter(unknown))
            known = [n for n in inspect.signature(self.params).parameters if n != "unknown"]
            raise RequestError(f"there is no setting {name!r}: {nearest(name, known)}", param=name)
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if any(not isinstance(s, str) or not s for s in stop):
            raise RequestError("a stop string is empty or no text", param="stop")
        bias = tuple((logit_bias or {}).items())
        if any(not isinstance(t, int) or not 0 <= t < self.executor.vocabulary or not math.isfinite(b) for t, b in bias):
            raise RequestError("logit_bias names a token outside the vocabulary, or a bias that is no number", param="logit_bias")
        for name, whole in (("max_tokens", max_tokens), ("top_k", top_k), ("seed", 0 if seed is None else seed)):
            if not isinstance(whole, int) or isinstance(whole, bool) or not -(2**63) <= whole < 2**63:
                raise RequestError(f"{name} is {whole!r}: it is a whole number of 64 bits", param=name)
        for name, value in (
            ("temperature", temperature), ("top_p", top_p), ("min_p", min_p), ("repetition_penalty", repetition_penalty),
            ("presence_penalty", presence_penalty), ("frequency_penalty", frequency_penalty),
        ):  # fmt: skip
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise RequestError(f"{name} is {value!r}: it is a number", param=name)
        if max_tokens < 1:
            raise RequestError(f"max_tokens is {max_tokens}: at least one token is generated", param="max_tokens")
        if stop and not self.tokenizer.available:
            raise RequestError("this model has no tokenizer: stop strings cannot be found", param="stop")
        for name, value, valid, rule in (
            ("temperature", temperature, 0 <= temperature < float("inf"), "it is a number from 0 on"),
            ("top_p", top_p, 0 < top_p <= 1, "it lies between 0 and 1"),
            ("top_k", top_k, top_k >= 0, "it is 0 (off) or more"),
            ("min_p", min_p, 0 <= min_p <= 1, "it lies between 0 and 1"),
            ("repetition_penalty", repetition_penalty, 0 < repetition_penalty < float("inf"), "it is more than 0"),
            ("presence_penalty", presence_penalty, abs(presence_penalty) < float("inf"), "it is a number"),
            ("frequency_penalty", frequency_penalty, abs(frequency_penalty) < float("inf"), "it is a number"),
        ):
            if not valid:
                raise RequestError(f"{name} is {value}: {rule}", param=name)
        chosen = secrets.randbits(63) if seed is None else seed
        return SamplingParams(
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            bias,
            chosen,
            max_tokens,
            stop,
            self.tokenizer.eos_ids,
            ignore_eos,
        )

    def generate(self, prompt: Prompt, **settings: Any) -> Generation:
        """Complete one prompt; the settings are those of `params`."""
        return self.generate_batch([prompt], **settings)[0]

    def generate_batch(self, prompts: Sequence[Prompt], **settings: Any) -> list[Generation]:
        """Complete several prompts at once: each gets what it would get alone."""
        results = [Generation("" if self.tokenizer.available else None) for _ in prompts]
        params = self.params(**settings)
        make = lambda: self.tokenizer.detokenizer(params.stop)  # noqa: E731
        requests = [
            Request(self.encode(prompt), params, partial(_collect, result), make_detokenizer=make)
            for prompt, result in zip(prompts, results, strict=True)
        ]
        engine = self._open_engine()
        try:
            for request, result in zip(requests, results, strict=True):
                result.prompt_tokens = int(request.prompt.size)
                engine.submit(request)
            while not engine.idle:
                engine.step()
        finally:
            for request in requests:
                engine.cancel(request)
        return results

    def _open_engine(self) -> Engine:
        if self._closed:
            raise UsageError("the model has been closed", "load it again")
        return self.engine

    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[Event]:
        """Events of one completion as they come, ending with a FinishEvent."""
        params = self.params(**settings)
        events: list[Event] = []
        request = Request(
            self.encode(prompt), params, events.append, make_detokenizer=lambda: self.tokenizer.detokenizer(params.stop)
        )
        engine = self._open_engine()
        engine.submit(request)
        try:
            while True:
                engine.step()
                for event in events:
                    yield event
                    if isinstance(event, FinishEvent):
                        return
                events.clear()
        finally:
            engine.cancel(request)

    @overload
    def logits(self, ids: Sequence[int] | str, *, chunk: int | None = None, schedule_seed: int | None = None) -> Logits: ...
    @overload
    def logits(
        self, ids: Sequence[Sequence[int]], *, chunk: int | None = None, schedule_seed: int | None = None
    ) -> list[Logits]: ...
    def logits(self, ids: Any, *, chunk: int | None = None, schedule_seed: int | None = None) -> Any:
        """Teacher-forced logits [T, V] float32 of one sequence (token ids or text), or of each of several, by the compiled kernels.

        `chunk`: tokens a sequence is given per step; `schedule_seed`: random chunks, mixed batches, preemptions and prefix hits.
        All give the same bits.
        """
        self._open_engine()
        one = isinstance(ids, str) or all(isinstance(i, int | np.integer) for i in ids)
        prompts = [self.encode(s) for s in ([ids] if one else ids)]
        if not all(p.size for p in prompts):
            raise RequestError("a sequence has no tokens", param="ids")
        engine = self.new_engine()
        scheduler = engine.scheduler
        disturb = None
        if schedule_seed is not None:
            random = np.random.default_rng(schedule_seed)
            scheduler.chunk = lambda sequence, most: int(random.integers(1, min(most, 48) + 1))

            def disturb(s: Scheduler) -> None:
                if s.running and random.random() < 0.15:
                    s.preempt(s.running[int(random.integers(len(s.running)))])

        elif chunk is not None:
            scheduler.chunk = lambda sequence, most: min(most, chunk)
        found = engine.collect(prompts, disturb)
        return found[0] if one else found

    def logits_hash(self, ids: Sequence[int]) -> str:
        """SHA-256 of the logits of a sequence, in the bits that every level gives: the artifact's canary."""
        self._open_engine()
        self.executor.portable(True)
        try:
            return hashlib.sha256(self.logits([ids])[0].tobytes()).hexdigest()
        finally:
            self.executor.portable(self.config.portable)

    def close(self) -> None:
        self._closed = True
        self.executor.close()
        self.artifact.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _open_executor(artifact: Artifact, config: RunConfig) -> CpuExecutor | LaunchExecutor | SplitExecutor:
    """The executor of the target that was resolved."""
    family, _, detail = config.target.partition(":")
    sizes: dict[str, Any] = {
        "max_tokens": config.max_tokens, "max_sequences": config.max_batch, "max_rows": config.max_rows, "context": config.context, "blocks": config.blocks,
    }  # fmt: skip
    if not is_gpu(config.target):
        return CpuExecutor(artifact, threads=config.threads, slots=config.slots, isa=detail, **sizes)
    driver = driver_module(family).open_driver()
    if target_entry(artifact, config.target).get("first"):
        from .executors.split import SplitExecutor

        return SplitExecutor(artifact, config.target, driver, threads=config.threads, slots=config.slots, **sizes)
    from .executors.launch import LaunchExecutor

    return LaunchExecutor(artifact, config.target, driver, **sizes)


def _collect(result: Generation, event: Event) -> None:
    if isinstance(event, TokenEvent):
        result.token_ids.append(event.token)
        if result.text is not None:
            result.text += event.text or ""
    elif isinstance(event, FinishEvent):
        result.finish_reason = event.reason
        if result.text is not None:
            result.text += event.text or ""


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    kv_cache: str | int | None = None,
    max_batch: int | None = None,
    target: str = "",
    isa: str = "",
    portable: bool = False,
    verify: bool = False,
    max_tokens: int = 512,
    max_rows: int = 64,
) -> Model:
    """Open an artifact and make it ready to run. Raises ArtifactError, EnvironmentLacks or UsageError."""
    artifact = open_artifact(path)
    if verify:
        artifact.check_weights()
    config = RunConfig.resolve(
        artifact,
        threads=threads,
        kv_cache=kv_cache,
        max_batch=max_batch,
        target=target,
        isa=isa,
        portable=portable,
        max_tokens=max_tokens,
        max_rows=max_rows,
    )
    return Model(artifact, config)
