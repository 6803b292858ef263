"""llama.cpp through llama-cpp-python. See timing.py."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import llama_cpp.llama_cpp as lib
from timing import main, random_ids

TYPES = {"q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "bf16": lib.LLAMA_FTYPE_MOSTLY_BF16}


@lib.llama_log_callback
def _quiet(level, text, data):
    pass


lib.llama_log_set(_quiet, ctypes.c_void_p(0))


def quantize(source: str, kind: str, out: str) -> None:
    params = lib.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    params.allow_requantize = True
    params.nthread = os.cpu_count() or 1
    if lib.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot quantize {source} to {kind}")


class Session:
    """A model with a context for `sequences` sequences."""

    def __init__(self, path: str, threads: int, context: int, sequences: int, flash: bool) -> None:
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(path.encode(), model_params)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context, 512, 512, sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = sequences == 1
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.model or not self.context:
            raise SystemExit("llama.cpp cannot load the model")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(512, 0, 1)

    def clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """tokens: (id, position, sequence, wants logits)."""
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            self.batch.n_tokens = len(part)
            for i, (token, position, sequence, logits) in enumerate(part):
                self.batch.token[i], self.batch.pos[i], self.batch.n_seq_id[i] = token, position, 1
                self.batch.seq_id[i][0], self.batch.logits[i] = sequence, logits
            if lib.llama_decode(self.context, self.batch):
                raise SystemExit("llama_decode failed")

    def best(self, row: int) -> int:
        import numpy as np

        pointer = lib.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(pointer, shape=(self.vocabulary,)).argmax())


def single(path: str, threads: int, flash: bool, prompt: int, generate: int) -> dict[str, float]:
    session = Session(path, threads, prompt + generate + 16, 1, flash)
    ids = random_ids(prompt, session.vocabulary)
    session.decode([(t, i, 0, i == prompt - 1) for i, t in enumerate(ids)])
    session.clear()
    start = time.perf_counter()
    session.decode([(t, i, 0, i == prompt - 1) for i, t in enumerate(ids)])
    token = session.best(-1)
    first = time.perf_counter()
    for i in range(generate - 1):
        session.decode([(token, prompt + i, 0, True)])
        token = session.best(-1)
    last = time.perf_counter()
    return {"prefill": prompt / (first - start), "decode": (generate - 1) / (last - first)}


def concurrent(path: str, threads: int, flash: bool, count: int, prompt: int, generate: int) -> float:
    session = Session(path, threads, count * (prompt + generate + 16), count, flash)

    def once() -> float:
        session.clear()
        prompts = [random_ids(prompt, session.vocabulary) for _ in range(count)]
        tokens = [0] * count
        start = time.perf_counter()
        for s in range(0, count, 4):
            group = range(s, min(s + 4, count))
            session.decode([(t, i, q, i == prompt - 1) for q in group for i, t in enumerate(prompts[q])])
            for n, q in enumerate(group):
                tokens[q] = session.best((n + 1) * prompt - 1)
        for i in range(generate - 1):
            session.decode([(tokens[q], prompt + i, q, True) for q in range(count)])
            tokens = [session.best(q) for q in range(count)]
        return count * generate / (time.perf_counter() - start)

    return once()


def time_cells(path: str, q: dict[str, Any]) -> dict[str, float]:
    """Flash attention off and on: the better of the two counts in each cell."""
    found: list[dict[str, float]] = []
    for flash in (False, True):
        cells = single(path, q["threads"], flash, q["prompt"], q["generate"])
        for count in q["concurrency"]:
            cells[f"at_once_{count}"] = concurrent(
                path, q["threads"], flash, count, q["concurrent_prompt"], q["concurrent_generate"]
            )
        found.append(cells)
    return {name: max(cells[name] for cells in found) for name in found[0]}


def first_token(path: str, threads: int) -> None:
    session = Session(path, threads, 256, 1, False)
    session.decode([(t, i, 0, i == 4) for i, t in enumerate((11, 23, 35, 47, 59))])
    session.best(-1)


if __name__ == "__main__":
    lib.llama_backend_init()
    main(quantize, time_cells, first_token)
