"""Fixtures that several files share: random seeds, tiny checkpoints, their captures and their artifacts, each made once."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
warnings.filterwarnings("ignore", message=".*torch.*", category=FutureWarning)
settings.register_profile(
    "llmc",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
settings.load_profile("llmc")


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--interop", default="", help="an interpreter with other people's tools (make test-interop)")
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew from what the code gives now")
    parser.addoption("--seed", type=int, default=None, help="seed of the random inputs, as a failing test printed it")
    parser.addoption(
        "--all-formats", action="store_true", help="compile all checkpoints that other tools wrote, not a tenth of them"
    )
    parser.addoption("--sanitize", action="store_true", help="run more models under the sanitizers")


def pytest_configure(config: Any) -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture
def random(request: Any) -> np.random.Generator:
    """Fresh random numbers for each run; a failing test shows the seed, and --seed takes it."""
    seed = request.config.getoption("--seed")
    seed = secrets.randbits(32) if seed is None else seed
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def interop_python(request: Any) -> str:
    """An interpreter with other people's tools, which run there through a worker script."""
    found = request.config.getoption("--interop")
    if not found:
        pytest.skip("needs --interop PYTHON, an interpreter with other people's tools: make test-interop")
    return found


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: Any) -> Callable[..., Path]:
    """checkpoint(key, dtype=…, **config fields) → the folder of a tiny random model."""
    from models import save_checkpoint

    made: dict[str, Path] = {}

    def make(key: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        name = repr((key, dtype, sorted(changes.items())))
        if name not in made:
            made[name] = save_checkpoint(key, tmp_path_factory.mktemp(key.replace("@", "-")), dtype=dtype, **changes)
        return made[name]

    return make


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: Any) -> Callable[..., Path]:
    """artifact(checkpoint folder, **compile options) → the file, compiled for this CPU alone unless a target is given.

    Compiles of one folder share its capture, which takes longer than all the rest of a tiny model.
    """
    import llmc
    from llmc import pipeline

    made: dict[str, Path] = {}
    captures: dict[tuple[str, str, int], Any] = {}
    real = pipeline.front_end

    def captured_once(opened: Any, dtype: str, context: int, trust_remote_code: bool = False) -> Any:
        key = (opened.source, dtype, context)
        if key not in captures:
            captures[key] = real(opened, dtype, context, trust_remote_code)
        return captures[key]

    def make(folder: Path, **options: Any) -> Path:
        options = {"target": ("cpu:native",), **options}
        name = repr((folder, sorted(options.items())))
        if name not in made:
            out = tmp_path_factory.mktemp("artifact") / "model.llmc"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pipeline, "front_end", captured_once)
                llmc.compile(str(folder), out, **options)
            made[name] = out
        return made[name]

    return make


@pytest.fixture(scope="session")
def front_end(checkpoint: Callable[..., Path]) -> Callable[..., Any]:
    """front_end(key, dtype) → (checkpoint, captured, imported) of a tiny model; captured once a session."""
    from llmc.compiler.checkpoint import open_checkpoint
    from llmc.pipeline import front_end

    made: dict[tuple[str, str], Any] = {}

    def make(key: str, dtype: str = "f32") -> Any:
        if (key, dtype) not in made:
            opened = open_checkpoint(str(checkpoint(key)))
            made[key, dtype] = (opened, *front_end(opened, dtype, 256))
        return made[key, dtype]

    return make


@pytest.fixture
def tiny(checkpoint: Callable[..., Path], artifact: Callable[..., Path]) -> Path:
    """The artifact of the plain tiny llama in float32."""
    return artifact(checkpoint("llama"))
