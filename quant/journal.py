"""The state of a calibration on disk, so that one that was killed goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from .algorithms.rtn import Codes

FIELDS = ("codes", "scales", "zeros", "order", "offsets")


@dataclass(frozen=True)
class State:
    """What was reached: nodes that are done, live values by kind ("env", "clean", "moments") and name, chosen codes, factors by place."""

    done: int
    values: dict[str, dict[str, torch.Tensor]]
    codes: dict[str, list[Codes]]
    factors: list[tuple[str, int, float, torch.Tensor]]


class Journal:
    """A folder that belongs to one calibration, named by `key`; anything else in it is refused."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self._written: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        mark = folder / "calibration.json"
        if mark.exists():
            found = json.loads(mark.read_text()).get("key")
            if found != key:
                raise InputError(f"{folder} holds the state of another calibration", "give another folder, or remove this one")
        elif any(folder.iterdir()):
            raise InputError(f"{folder} holds other files", "give a new folder")
        else:
            _whole(mark, json.dumps({"key": key}).encode())

    def load(self) -> State | None:
        """The last state that was written whole; None when there is none."""
        where = self._folder / "state.safetensors"
        if not where.exists():
            return None
        try:
            with safe_open(where, "pt") as stream:
                facts = json.loads(stream.metadata()["facts"])
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            raise InputError(f"{where} is damaged: {error}", "remove the folder and start again") from error
        values: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in ("env", "clean", "moments")}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind in values:
                values[kind][rest] = tensor
        factors = [(p, a, o, tensors[f"factors/{i}"]) for i, (p, a, o) in enumerate(facts["factors"])]
        codes = {name: self._read(number) for name, number in facts["codes"].items()}
        self._written = set(facts["codes"])
        return State(int(facts["done"]), values, codes, factors)

    def save(self, state: State, names: Mapping[str, int]) -> None:
        """Write new codes, then the state, each file whole or not at all. `names` numbers the weights; codes that earlier
        factors may have changed are written again."""
        for name, codes in state.codes.items():
            data = {f"{i}/{f}": t.contiguous() for i, c in enumerate(codes) for f in FIELDS if (t := getattr(c, f)) is not None}
            self._save(self._folder / f"codes-{names[name]}.safetensors", data, {})
        tensors = {f"{kind}/{name}": t.contiguous() for kind, held in state.values.items() for name, t in held.items()}
        tensors |= {f"factors/{i}": f.contiguous() for i, (*_, f) in enumerate(state.factors)}
        facts = {
            "done": state.done,
            "codes": {name: names[name] for name in {*self._written, *state.codes}},
            "factors": [[p, a, o] for p, a, o, _ in state.factors],
        }
        self._written.update(state.codes)
        self._save(self._folder / "state.safetensors", tensors, {"facts": json.dumps(facts)})

    def _read(self, number: int) -> list[Codes]:
        with safe_open(self._folder / f"codes-{number}.safetensors", "pt") as stream:
            parts: dict[int, dict[str, torch.Tensor]] = {}
            for name in stream.keys():  # noqa: SIM118
                index, _, part = name.partition("/")
                parts.setdefault(int(index), {})[part] = stream.get_tensor(name)
        return [Codes(**parts[i]) for i in sorted(parts)]

    def _save(self, where: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        draft = where.with_suffix(".part")
        save_file({k: v.clone() for k, v in tensors.items()}, draft, metadata)
        with draft.open("rb+") as stream:
            os.fsync(stream.fileno())
        draft.rename(where)


def _whole(where: Path, data: bytes) -> None:
    draft = where.with_suffix(".part")
    draft.write_bytes(data)
    draft.rename(where)
