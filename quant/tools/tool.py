"""Other people's quantizers, each run by an interpreter that has it: `--algorithm TOOL:METHOD`.

A tool is one Python file, in this folder or behind an entry point of the group `llmc.quantizers`, with METHODS, PACKAGES that it
needs, INSTALL for a person, refusal() and quantize(). It is imported here for all but the last, and by worker.py in the interpreter that
has the tool; so it imports nothing of llmc.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from ...errors import EnvironmentLacks, UnsupportedError, UsageError, nearest
from ..scheme import Scheme

NOT_TOOLS = ("tool", "worker")
WORKER = Path(__file__).with_name("worker.py")
HAS = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(n) is None for n in sys.argv[1:]))"
ERROR_LINES = 3


@dataclass(frozen=True)
class Request:
    """What a tool is asked for, as the JSON file that its script reads.

    `source` is a Hugging Face folder with dense weights, `out` the folder to write. `windows` names a JSON file with the token ids
    of the calibration text, lists of equal length. `group` inputs share a scale (0: a whole channel). `ignore` are the modules
    that stay as they are.
    """

    source: str
    out: str
    method: str
    kind: str
    bits: int
    group: int
    symmetric: bool
    activations: str
    windows: str
    ignore: tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """One tool, by the name that --algorithm gives it."""

    name: str
    script: Path
    module: ModuleType

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.module.METHODS)

    def check(self, method: str, scheme: Scheme, python: str) -> None:
        """Raises UnsupportedError for a scheme that the tool has no place for, EnvironmentLacks when `python` lacks it."""
        why = self.module.refusal(method, scheme.kind, scheme.bits, scheme.group, not scheme.asymmetric, scheme.activations)
        if why or scheme.share:
            raise UnsupportedError(f"{self.name}:{method} cannot quantize to {scheme}: {why or 'scales are shared by outputs'}")
        try:
            found = subprocess.run([python, "-c", HAS, *self.module.PACKAGES], capture_output=True, check=False).returncode == 0
        except OSError as error:
            raise EnvironmentLacks(
                f"{python} cannot be run: {error.strerror}", "give an interpreter with --tool-python"
            ) from error
        if not found:
            raise EnvironmentLacks(
                f"{python} has no {' and '.join(self.module.PACKAGES)}",
                f"install it there, or name another interpreter with --tool-python: {self.module.INSTALL}",
            )

    def run(self, request: Request, python: str, folder: Path, *, quiet: bool) -> None:
        """Write the checkpoint `request.out`; `folder` is free for files. Raises EnvironmentLacks with the tool's last words."""
        where = folder / "request.json"
        where.write_text(json.dumps(asdict(request)))
        log = folder / "tool.log"
        with log.open("wb") as stream:
            shown = stream if quiet else subprocess.PIPE
            command = [python, str(WORKER), str(self.script), str(where)]
            with subprocess.Popen(command, cwd=folder, stdout=shown, stderr=subprocess.STDOUT) as process:
                try:
                    while process.stdout is not None and (part := process.stdout.read1(1 << 16)):  # type: ignore[attr-defined]
                        stream.write(part)
                        sys.stderr.buffer.write(part)
                        sys.stderr.buffer.flush()
                    code = process.wait()
                except BaseException:
                    process.kill()
                    raise
        if code != 0:
            said = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()][-ERROR_LINES:]
            raise EnvironmentLacks(f"{self.name}:{request.method} failed with exit {code}: {' / '.join(said)}")


@cache
def catalog() -> dict[str, Tool]:
    """Every tool by name: the files of this folder, and entry points of other packages, whose value is a module."""
    from importlib.metadata import entry_points

    package = importlib.import_module(__package__ or "")
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    modules = {n: importlib.import_module(f"{package.__name__}.{n}") for n in names if n not in NOT_TOOLS}
    modules |= {entry.name: entry.load() for entry in entry_points(group="llmc.quantizers")}
    found = {}
    for name, module in modules.items():
        spelled = name.replace("_", "-")
        found[spelled] = Tool(spelled, Path(str(module.__file__)), module)
    return found


def find_tool(algorithm: str) -> tuple[Tool, str] | None:
    """`gptqmodel:awq` → the tool and its method; None for llmc's own. Raises UsageError naming the nearest."""
    name, colon, method = algorithm.partition(":")
    if not colon:
        return None
    tool = catalog().get(name)
    if tool is None:
        raise UsageError(f"no tool {name!r} in --algorithm {algorithm}", nearest(name, tuple(catalog())))
    if method not in tool.methods:
        raise UsageError(f"{name} has no method {method!r}", nearest(method, tool.methods))
    return tool, method
