"""The Python interface: `with llmc.load("model.llmc") as model: model.generate("…")`."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RequestError
from .artifact import Artifact, open_artifact
from .blocks import BlockPool
from .config import RunConfig
from .engine import Engine, Event, FinishEvent, Request, TokenEvent
from .executors.cpu import CpuExecutor
from .sampling import SamplingParams
from .scheduler import Scheduler
from .states import StatePool
from .tokenizer import ArtifactTokenizer

Prompt = str | Sequence[int]


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
        self.tokenizer = ArtifactTokenizer(artifact)
        self.executor = CpuExecutor(
            artifact,
            threads=config.threads,
            max_tokens=config.max_tokens,
            max_sequences=config.max_batch,
            max_rows=config.max_rows,
            context=config.context,
            blocks=config.blocks,
            slots=config.slots,
            isa=config.isa,
        )
        self.executor.portable(config.portable)
        self.engine = self.new_engine()

    def new_engine(self, max_tokens: int | None = None) -> Engine:
        """A fresh engine on the same executor, with an empty cache."""
        scheduler = Scheduler(
            BlockPool(self.config.blocks),
            StatePool(self.config.slots, self.executor.copy_state),
            max_tokens=max_tokens or self.config.max_tokens,
            max_sequences=self.config.max_batch,
            max_rows=self.config.max_rows,
            context=self.config.context,
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
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
    ) -> SamplingParams:
        """Sampling settings with this model's end tokens; temperature 0 is greedy."""
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
            (),
            chosen,
            max_tokens,
            tuple(stop),
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
        for prompt, result in zip(prompts, results, strict=True):
            ids = self.encode(prompt)
            result.prompt_tokens = int(ids.size)
            self.engine.submit(
                Request(
                    ids,
                    params,
                    partial(_collect, result),
                    make_detokenizer=lambda: self.tokenizer.detokenizer(params.stop),
                )
            )
        while not self.engine.idle:
            self.engine.step()
        return results

    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[Event]:
        """Events of one completion as they come, ending with a FinishEvent."""
        params = self.params(**settings)
        events: list[Event] = []
        request = Request(
            self.encode(prompt), params, events.append, make_detokenizer=lambda: self.tokenizer.detokenizer(params.stop)
        )
        self.engine.submit(request)
        try:
            while True:
                self.engine.step()
                for event in events:
                    yield event
                    if isinstance(event, FinishEvent):
                        return
                events.clear()
        finally:
            self.engine.cancel(request)

    def logits(
        self, sequences: Sequence[Sequence[int]], *, chunk: int | None = None, schedule_seed: int | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Teacher-forced logits [T, V] of each sequence of token ids, by the compiled kernels.

        `chunk`: tokens a sequence is given per step; `schedule_seed`: random chunks, mixed batches, preemptions and prefix hits.
        All give the same bits.
        """
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
        return engine.collect([self.encode(s) for s in sequences], disturb)

    def logits_hash(self, ids: Sequence[int]) -> str:
        """SHA-256 of the logits of a sequence, in the bits that every level gives: the artifact's canary."""
        self.executor.portable(True)
        try:
            return hashlib.sha256(self.logits([ids])[0].tobytes()).hexdigest()
        finally:
            self.executor.portable(self.config.portable)

    def close(self) -> None:
        self.executor.close()
        self.artifact.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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
