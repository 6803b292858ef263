"""Commands run in this process: `llmc("generate", …)` gives status, stdout, stderr; captures of one config are shared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from server import tiny


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout, and nothing beside it."""
        assert self.out.endswith("\n") and self.out.count("\n") == 1, self.out
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@pytest.fixture
def llmc(capsys: Any, monkeypatch: Any) -> Callable[..., Outcome]:
    """llmc(*args, status=0) runs a command; no traceback may ever show."""
    from llmc import pipeline
    from llmc.cli.main import run

    tiny.checkpoint()
    monkeypatch.setattr(pipeline, "front_end", tiny.capturing_once())

    def call(*args: Any, status: int = 0) -> Outcome:
        capsys.readouterr()
        got = run([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err, err
        assert got == status, f"exit {got}, not {status}: {err or out}"
        return Outcome(got, out, err)

    return call


@pytest.fixture
def fails(llmc: Callable[..., Outcome]) -> Callable[..., str]:
    """fails(status, *args) runs a command that must fail, with --json and without; gives the message and its hint."""

    def call(status: int, *args: Any) -> str:
        plain = llmc(*args, status=status)
        assert plain.out == "" or status == 1
        assert plain.err.splitlines()[-1].startswith(("error: ", "  hint: ")) or "error: " in plain.err
        if args[0] in ("run", "chat", "opt"):
            return plain.err
        value = llmc(*args, "--json", status=status).json
        assert set(value) == {"error", "exit"}
        assert set(value["error"]) == {"type", "message", "hint"}
        assert value["exit"] == status
        assert value["error"]["message"] in plain.err
        return f"{value['error']['type']}: {value['error']['message']} {value['error']['hint']}"

    return call


@pytest.fixture(scope="session")
def artifact() -> Path:
    return tiny.artifact()


@pytest.fixture(scope="session")
def source() -> Path:
    return tiny.checkpoint()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: Any) -> Path:
    """An empty working directory."""
    where = tmp_path / "here"
    where.mkdir()
    monkeypatch.chdir(where)
    return where
