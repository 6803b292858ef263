"""The CPU executor: the artifact's shared object, called once a step."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from _ctypes import dlclose
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ArtifactError, EnvironmentLacks, LlmcError, nearest
from ..artifact import Artifact, layout_digest
from ..cpu_info import LEVELS, available_levels
from ..plan import check_block_tables
from ..sampling import Draw, SamplingRow

ABI = 5
Ints = npt.NDArray[np.int32]


@dataclass(slots=True)
class Batch:
    """A step's tokens, packed: all arrays int32.

    ids [T], positions [T]; start [S+1]: where each sequence's tokens begin; pos [S]: the position of its first one;
    block_tables [tables, S, max_blocks], see BlockPool; row_tokens [R]: the tokens whose logits are wanted; slots [S]: where the states of
    recurrent layers lie (empty for a model without any).
    """

    ids: Ints
    positions: Ints
    start: Ints
    pos: Ints
    block_tables: Ints
    row_tokens: Ints
    slots: Ints = field(default_factory=lambda: np.empty(0, np.int32))


class _Batch(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int32) for n in ("tokens", "sequences", "rows", "max_blocks")] + [
        (n, ctypes.c_void_p) for n in ("ids", "positions", "start", "pos", "block_tables", "row_tokens", "slots")
    ]


class _Sampling(ctypes.Structure):
    _fields_ = [
        ("row", ctypes.c_int32), *((n, ctypes.c_float) for n in ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")),
        ("top_k", ctypes.c_int32), ("seed", ctypes.c_uint64), ("counter", ctypes.c_uint64),
        ("prompt", ctypes.c_void_p), ("prompt_count", ctypes.c_int64), ("output", ctypes.c_void_p), ("output_count", ctypes.c_int64),
        ("bias_ids", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("bias_count", ctypes.c_int32), ("unused", ctypes.c_int32),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Kernels:
    """One level's shared object: its member, the tensors that it reads, in their order, and how many floats a row of its result has."""

    member: str
    weights: list[str]
    width: int


def _kernels(artifact: Artifact, level: str, first: dict[str, Any] | None) -> _Kernels:
    if first is not None:
        return _Kernels(first["levels"][level], first["weights"], int(first["width"]))
    entry = next(t for t in artifact.manifest["targets"] if t.get("isa") == level)
    names = [n for n, _ in artifact.manifest["weights"]]
    return _Kernels(entry["member"], names[: int(entry.get("weights", len(names)))], int(artifact.manifest["model"]["vocab"]))


def choose_level(artifact: Artifact, wanted: str = "", first: dict[str, Any] | None = None) -> str:
    """The level to run: the fastest that the file has and this CPU runs, or the wanted one; of the layers before a GPU's where `first` is
    their entry in the manifest. Raises EnvironmentLacks."""
    held = (
        set(first["levels"])
        if first is not None
        else {t["isa"] for t in artifact.manifest["targets"] if t["name"].startswith("cpu")}
    )
    here = available_levels()
    if wanted:
        if wanted not in LEVELS:
            from ...errors import UsageError

            raise UsageError(f"unknown instruction-set level {wanted!r}", nearest(wanted, LEVELS))
        if wanted not in held:
            raise EnvironmentLacks(
                f"{artifact.path.name} holds no kernels for {wanted}; it holds {', '.join(sorted(held)) or 'none'}",
                "compile it with that target",
            )
        if wanted not in here:
            raise EnvironmentLacks(f"this CPU does not run {wanted}; it runs {', '.join(here) or 'none of the levels'}")
        return wanted
    for level in here:
        if level in held:
            return level
    raise EnvironmentLacks(
        f"{artifact.path.name} holds kernels for {', '.join(sorted(held)) or 'no CPU'}; this CPU runs {', '.join(here) or 'none of the known levels'}",
        "compile it for this machine: --target cpu",
    )


class CpuExecutor:
    """Runs steps of one artifact. Owns the shared object's state: arena, cache and threads; `close()` frees them.

    With `first`, an entry of a GPU target in the manifest, it runs the layers before the GPU's: `logits` are then what they hand on, a
    row [W] for each token of the step.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int,
        max_tokens: int,
        max_sequences: int,
        max_rows: int,
        context: int,
        blocks: int,
        slots: int = 0,
        isa: str = "",
        first: dict[str, Any] | None = None,
    ) -> None:
        if not artifact.has("weights/model.safetensors"):
            raise EnvironmentLacks(
                f"{artifact.path.name} was compiled without weights", "compile it with --weights all to run it"
            )
        self.artifact = artifact
        self.level = choose_level(artifact, isa, first)
        kernels = _kernels(artifact, self.level, first)
        self.mixed_tokens = 192 if self.level == "x86-64-amx" else 64  # from about here on a step's time is its arithmetic
        self.vocabulary = kernels.width
        self.blocks = blocks
        self._library, self._handle = _load(artifact, self.level, kernels)
        tensors = artifact.tensors
        base = artifact.base_address
        pointers = (ctypes.c_void_p * len(kernels.weights))(*[base + tensors[n][0] for n in kernels.weights])
        self._max_rows = max_rows
        check_block_tables(artifact.path.name, artifact.manifest, self._library.llmc_block_tables())
        if slots < 1 and self._library.llmc_state_bytes_per_slot():
            raise ArtifactError(
                f"{artifact.path.name}: its kernels keep states that its memory plan does not list", "fetch or compile it again"
            )
        self._step = self._library.llmc_create(pointers, threads, max_tokens, max_sequences, max_rows, context, blocks, slots)
        if not self._step:
            raise EnvironmentLacks(
                f"no memory for {blocks} cache blocks and {slots} states, or no threads",
                "give a smaller --kv-cache or --max-batch",
            )

    def run(self, batch: Batch) -> None:
        """Compute a step; `logits` then holds its rows."""
        arrays = [
            np.ascontiguousarray(a, dtype=np.int32)
            for a in (batch.ids, batch.positions, batch.start, batch.pos, batch.block_tables, batch.row_tokens, batch.slots)
        ]
        raw = _Batch(
            batch.ids.size, batch.pos.size, batch.row_tokens.size, batch.block_tables.shape[2], *[a.ctypes.data for a in arrays]
        )
        if self._library.llmc_step(self._step, ctypes.byref(raw)):
            raise LlmcError(
                f"a step of {batch.ids.size} tokens and {batch.pos.size} sequences is larger than the executor was made for"
            )

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """The last step's logits [rows, V], a view that the next step overwrites."""
        address = self._library.llmc_logits(self._step)
        flat = (ctypes.c_float * (rows * self.vocabulary)).from_address(address)
        return np.frombuffer(memoryview(flat).cast("B"), dtype=np.float32).reshape(rows, self.vocabulary)

    def sample(self, rows: Sequence[SamplingRow], top: int = 0, logprobs: bool = False) -> list[Draw]:
        """Draw one token for each row of the last step."""
        count = len(rows)
        raw = (_Sampling * count)(*[_row(r) for r in rows])
        tokens = np.empty(count, np.int32)
        wanted = logprobs or top > 0
        if not wanted:
            self._library.llmc_sample(self._step, raw, count, self.vocabulary, tokens.ctypes.data, None, 0, None, None)
            return [Draw(t) for t in tokens.tolist()]
        top_ids, top_values = np.empty((count, max(top, 1)), np.int32), np.empty((count, max(top, 1)), np.float32)
        probabilities = np.empty(count, np.float32)
        self._library.llmc_sample(
            self._step,
            raw,
            count,
            self.vocabulary,
            tokens.ctypes.data,
            probabilities.ctypes.data,
            top,
            top_ids.ctypes.data,
            top_values.ctypes.data,
        )
        return [
            Draw(
                int(tokens[i]),
                float(probabilities[i]),
                [(int(t), float(p)) for t, p in zip(top_ids[i], top_values[i], strict=True) if t >= 0][:top],
            )
            for i in range(count)
        ]

    def score(self, targets: Ints) -> npt.NDArray[np.float32]:
        """Log-probability of one target for each row of the last step."""
        out = np.empty(targets.size, np.float32)
        wanted = np.ascontiguousarray(targets, dtype=np.int32)
        self._library.llmc_score(self._step, wanted.ctypes.data, wanted.size, self.vocabulary, out.ctypes.data)
        return out

    def copy_block(self, source: int, target: int) -> None:
        self._library.llmc_copy_block(self._step, source, target)

    def copy_state(self, source: int, target: int) -> None:
        """Copy the states of recurrent layers from one slot to another."""
        self._library.llmc_copy_state(self._step, source, target)

    def portable(self, on: bool) -> None:
        """Whether products with bfloat16 activations keep to the arithmetic of all levels, where this one has a faster kind."""
        self._library.llmc_portable(self._step, int(on))

    def profile(self, on: bool) -> None:
        """Start (and clear) or stop timing each kernel."""
        self._library.llmc_profile(self._step, int(on))

    def profiled(self) -> list[tuple[str, float, int]]:
        """(kernel, seconds, calls) since `profile(True)`."""
        count = self._library.llmc_kernel_count()
        return [
            (
                self._library.llmc_kernel_name(i).decode(),
                self._library.llmc_kernel_seconds(self._step, i),
                self._library.llmc_kernel_calls(self._step, i),
            )
            for i in range(count)
        ]

    def peaks(self, threads: int) -> dict[str, float]:
        """This machine's ceilings with that many threads, best of several short runs: reading, int8 and bf16 arithmetic."""
        library, size, rounds = self._library, 1 << 28, 1_000_000
        buffers = [np.ones(size // 8, np.int64) for _ in range(threads)]
        read = min(together(threads, lambda i: library.llmc_peak_read(buffers[i].ctypes.data, size)) for _ in range(5))
        floats = min(together(threads, lambda i: library.llmc_peak_float(rounds, 1e-3)) for _ in range(4))
        int8 = min(together(threads, lambda i: library.llmc_peak_int8(rounds, 3)) for _ in range(4))
        return {
            "read_gb_s": threads * size / read / 1e9,
            "int8_gop_s": threads * rounds * library.llmc_peak_int8_operations() / int8 / 1e9,
            "bf16_gflop_s": threads * rounds * library.llmc_peak_float_operations() / floats / 1e9,
        }

    def close(self) -> None:
        if self._step:
            self._library.llmc_destroy(self._step)
            self._step = None
            dlclose(self._library._handle)
            os.close(self._handle)


def together(threads: int, work: Callable[[int], object]) -> float:
    """Wall seconds of `work(i)` in as many threads at once."""
    gate = threading.Barrier(threads + 1)

    def body(i: int) -> None:
        gate.wait()
        work(i)

    running = [threading.Thread(target=body, args=(i,)) for i in range(threads)]
    for thread in running:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in running:
        thread.join()
    return time.perf_counter() - start


def _row(row: SamplingRow) -> _Sampling:
    made = _Sampling(
        row.row,
        row.temperature,
        row.top_p,
        row.min_p,
        row.repetition_penalty,
        row.presence_penalty,
        row.frequency_penalty,
        row.top_k,
        row.seed & (2**64 - 1),
        row.counter,
    )
    for name, array in (("prompt", row.prompt), ("output", row.output)):
        if array is not None and array.size:
            setattr(made, name, array.ctypes.data)
            setattr(made, f"{name}_count", array.size)
    if row.bias_ids is not None and row.bias is not None and row.bias_ids.size:
        made.bias_ids, made.bias, made.bias_count = row.bias_ids.ctypes.data, row.bias.ctypes.data, row.bias_ids.size
    return made


def _load(artifact: Artifact, level: str, kernels: _Kernels) -> tuple[Any, int]:
    """dlopen the level's shared object from memory: no temporary file is left behind.

    The descriptor stays open as long as the library: the loader knows libraries by path, and this path is the descriptor's number.
    """
    handle = os.memfd_create("llmc-kernels")
    try:
        os.write(handle, artifact.read(kernels.member))
        library = ctypes.CDLL(f"/proc/self/fd/{handle}")
    except OSError as error:
        os.close(handle)
        raise EnvironmentLacks(
            f"the kernels for {level} cannot be loaded: {error}", "llmc needs Linux with glibc 2.28 or newer"
        ) from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    if library.llmc_abi() != ABI:
        raise ArtifactError(
            f"{artifact.path.name}: its kernels speak version {library.llmc_abi()}, this llmc {ABI}", "compile it again"
        )
    for function, result, arguments in (
        ("llmc_layout", ctypes.c_char_p, []),
        ("llmc_usable", integer, []), ("llmc_create", pointer, [pointer, *[integer] * 7]), ("llmc_destroy", None, [pointer]), ("llmc_step", integer, [pointer, pointer]),
        ("llmc_logits", pointer, [pointer]), ("llmc_sample", integer, [pointer, pointer, integer, integer, pointer, pointer, integer, pointer, pointer]),
        ("llmc_score", integer, [pointer, pointer, integer, integer, pointer]), ("llmc_copy_block", integer, [pointer, integer, integer]), ("llmc_copy_state", integer, [pointer, integer, integer]),
        ("llmc_portable", None, [pointer, integer]), ("llmc_profile", None, [pointer, integer]), ("llmc_kernel_count", integer, []), ("llmc_kernel_name", ctypes.c_char_p, [integer]),
        ("llmc_peak_read", ctypes.c_int64, [pointer, ctypes.c_int64]), ("llmc_peak_float", ctypes.c_float, [ctypes.c_int64, ctypes.c_float]), ("llmc_peak_float_operations", integer, []),
        ("llmc_peak_int8", ctypes.c_int32, [ctypes.c_int64, ctypes.c_int32]), ("llmc_peak_int8_operations", integer, []),
        ("llmc_kernel_seconds", ctypes.c_double, [pointer, integer]), ("llmc_kernel_calls", ctypes.c_int64, [pointer, integer]), ("llmc_cache_bytes_per_block", ctypes.c_int64, []),
        ("llmc_state_bytes_per_slot", ctypes.c_int64, []), ("llmc_block_tables", integer, []),
    ):  # fmt: skip
        found = getattr(library, function)
        found.restype, found.argtypes = result, arguments
    if not library.llmc_usable():
        raise EnvironmentLacks(f"the kernel of this machine does not let the process use {level}", "run with --isa x86-64-v4")
    if library.llmc_layout().decode() != layout_digest(kernels.weights, kernels.width):
        raise ArtifactError(
            f"{artifact.path.name}: its kernels were made for other weights than its manifest lists",
            "the file is altered: fetch or compile it again",
        )
    return library, handle
