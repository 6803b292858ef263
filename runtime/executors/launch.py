"""The launch executor: an artifact's Plan, run on a device through a driver. The same code for CUDA, HIP and the interpreter."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ArtifactError, EnvironmentLacks, LlmcError
from .. import host_sampling
from ..artifact import Artifact
from ..drivers.driver import Driver, as_bytes
from ..plan import BLOCK, FEW_SPLITS, ONE, ONE_SPLITS, OTHER, PLAN_VERSION, SHORT, SPLIT, SPLITS, STEPS, check_block_tables
from ..sampling import Draw, SamplingRow
from .choose import target_entry
from .cpu import Batch

ALIGN = 256
PART_BYTES = 64 << 20
FEW = 8
"""Sequences up to which a step's splits are few."""
GRAPHS = 64
SAMPLING = ("greedy", "drawn")
"""Launches that are no part of a step: the largest logits of rows, and draws from them."""
DRAW_INPUTS = {"sample_rows": 1, "draw_rows": 2, "draw_settings": 4}
"""What they read, in words a row."""
CARRY = 3
"""The number of the input that layers elsewhere make."""
ELEMENT = {"f32": 4, "f16": 2, "bf16": 2}
Ints = npt.NDArray[np.int32]


class LaunchExecutor:
    """Runs steps of one artifact on one device. Owns what it allocates there; `close()` frees it."""

    def __init__(
        self,
        artifact: Artifact,
        target: str,
        driver: Driver,
        *,
        max_tokens: int,
        max_sequences: int,
        max_rows: int,
        context: int,
        blocks: int,
        random_weights: int | None = None,
        carry: int = 0,
    ) -> None:
        """carry: floats a token that layers elsewhere hand to the plan's."""
        self.artifact, self.level, self.blocks = artifact, target, blocks
        self.vocabulary = int(artifact.manifest["model"]["vocab"])
        self._driver = driver
        member = target_entry(artifact, target)["member"]
        folder = member.rpartition("/")[0]
        self._plan = json.loads(artifact.read(member))
        if self._plan.get("version") != PLAN_VERSION:
            raise ArtifactError(
                f"{artifact.path.name}: its plan for {target} has version {self._plan.get('version')}, this llmc reads {PLAN_VERSION}",
                "compile it again",
            )
        if int(self._plan.get("carry", 0)) != carry:
            raise ArtifactError(
                f"{artifact.path.name}: its plan for {target} goes on after other layers than its manifest lists",
                "the file is altered: fetch or compile it again",
            )
        self._seed = random_weights
        if random_weights is None and not artifact.has("weights/model.safetensors"):
            raise EnvironmentLacks(
                f"{artifact.path.name} was compiled without weights", "compile it with --weights all to run it"
            )
        self.mixed_tokens = max_tokens
        self._max_tokens, self._max_sequences, self._max_rows = max_tokens, max_sequences, max_rows
        self._max_blocks = -(-context // BLOCK)
        self._kernels = {
            name: driver.load(artifact.read(f"{folder}/{k['member']}"), k) for name, k in self._plan["kernels"].items()
        }
        self._buffers = [
            driver.allocate(b["tokens"] * max_tokens + b["rows"] * max_rows + b["fixed"] + ALIGN) for b in self._plan["buffers"]
        ]
        self._tables = {name: self._constant(np.array(values, np.float32)) for name, values in self._plan["tables"].items()}
        self._place_weights()
        self._regions: dict[int, tuple[int, int, int, int]] = {}  # of keys and of values: the address, bytes of a block
        for cache in self._plan["caches"]:
            if cache["region"] not in self._regions:
                k, v = (BLOCK * cache["groups"] * cache[d] * ELEMENT[cache["kind"]] for d in ("dk", "dv"))
                self._regions[cache["region"]] = driver.allocate(blocks * k), driver.allocate(blocks * v), k, v
        self._block_tables = 1 + max((cache["table"] for cache in self._plan["caches"]), default=0)
        check_block_tables(artifact.path.name, artifact.manifest, self._block_tables)
        self._part = driver.allocate(PART_BYTES)
        self._joins = any(launch["steps"] == [ONE, ONE_SPLITS] for launch in self._plan["launches"])
        self._carry = driver.allocate(4 * max_tokens * carry)
        walked = [x["variants"] for x in self._plan["launches"] if any(v[3] for v in x["variants"])]
        self._tiles = {
            step: sorted({next(v[3] for v in variants if v[0] == 0 or step <= v[0]) for variants in walked}) for step in STEPS
        }
        tile_ints = 2 * max(map(len, self._tiles.values())) * (max_tokens + max_sequences)
        width = 2 * max(8, self._max_blocks)  # rounded up to a power of two
        ints = 3 * max_tokens + tile_ints + 2 * max_rows + 4 * max_sequences + 64 * 64
        ints += self._block_tables * (max_tokens + max_sequences * width + 64)
        self._inputs = driver.allocate(4 * ints)
        self._tokens = driver.allocate(4 * max(max_rows, 1))
        self._draws = {name: driver.allocate(4 * size * max(max_rows, 1)) for name, size in DRAW_INPUTS.items()}
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._step = [x for x in self._plan["launches"] if x["when"] not in SAMPLING]
        self._sampling = {when: [x for x in self._plan["launches"] if x["when"] == when] for when in SAMPLING}
        self._greedy_rows: list[int] = []  # what `sample_rows` holds
        self._logits: npt.NDArray[np.float32] | None = None

    def _constant(self, values: npt.NDArray[Any]) -> int:
        address = self._driver.allocate(values.nbytes)
        self._driver.upload(address, as_bytes(values))
        return address

    def _place_weights(self) -> None:
        """Upload packed tensors and lay them out as rows; those that no kernel reads as they are do not stay."""
        plan, held = self._plan, self._plan["weights"]
        plain = {a[1] for launch in plan["launches"] for a in launch["arguments"] if a[0] == "weight"}
        self._weights: dict[int, int] = {}
        self._rows = [0] * len(plan["device"])
        users: dict[int, list[int]] = {}
        for number, item in enumerate(plan["device"]):
            users.setdefault(item["weight"], []).append(number)
        for index, (name, size, kind) in enumerate(held):
            if index not in plain and index not in users:
                continue
            if self._seed is None:
                data = self.artifact.tensor(name)
                address = self._driver.allocate(len(data))
                self._driver.upload(address, data)
            else:
                address = self._random(size, kind)
            for number in users.get(index, []):
                item = plan["device"][number]
                self._rows[number] = self._driver.allocate(item["bytes"])
                self._driver.launch(
                    self._kernels[item["kernel"]], (item["grid"][0], item["grid"][1], 1), [address, self._rows[number]]
                )
            if index in plain:
                self._weights[index] = address
            else:
                self._driver.free(address)

    def _random(self, size: int, kind: str) -> int:
        """A packed tensor of plausible numbers, for timing a plan without weights: one piece, copied over and over."""
        rng = np.random.default_rng(self._seed)
        count = min(size, 8 << 20)
        if kind == "integers":
            piece = np.zeros(count, np.uint8)
        elif kind == "floats:bf16":
            normals = rng.standard_normal(count // 2, np.float32) * np.float32(0.02)
            piece = (normals.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        elif kind.startswith("floats") or kind in ("vector", "bias", "transposed", "input_scale"):
            dtype = np.float16 if kind == "floats:f16" else np.float32
            piece = (
                (rng.random(count // dtype().itemsize, np.float32) * 0.02 + (0.99 if kind == "vector" else 0.0))
                .astype(dtype)
                .view(np.uint8)
            )
        elif kind.startswith("scales"):
            words = {"f16": 0x14001400}.get(kind.partition(":")[2], 0x3A803A80)  # 0.001, as two in 16 bits too
            piece = np.full(count // 4, words, np.uint32).view(np.uint8)
        else:
            piece = rng.integers(0, 256, count, dtype=np.uint8)
            piece[piece & 127 == 127] = 0  # not numbers as e4m3
        address = self._driver.allocate(size)
        self._driver.upload(address, as_bytes(piece))
        done = piece.nbytes
        while 0 < done < size:
            part = min(done, size - done)
            self._driver.copy(address, address + done, part)
            done += part
        return address

    def copy_rate(self, size: int = 1 << 30, rounds: int = 10) -> float:
        """Bytes a second that the device reads and writes in large copies."""
        source, target = self._driver.allocate(size), self._driver.allocate(size)
        self._driver.copy(source, target, size)
        self._driver.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            self._driver.copy(source, target, size)
        self._driver.synchronize()
        seconds = time.perf_counter() - start
        for address in (source, target):
            self._driver.free(address)
        return 2 * size * rounds / seconds

    def profile(self, batch: Batch, rounds: int = 5) -> list[dict[str, Any]]:
        """What a step's time is made of: for each kernel its launches of the step alone, one after the other as they lie in the plan.

        Returns kernel, launches, seconds of all of them (the median of `rounds`), weight_bytes and modules, the longest first. Needs a
        device that records launches; the caches hold what the step put there.
        """
        self.run(batch)
        sizes, addresses = self._stage(batch)
        groups: dict[str, list[dict[str, Any]]] = {}
        for launch in self._step:
            kernel = self._chosen(launch, sizes)
            if kernel is not None:
                groups.setdefault(kernel[1], []).append(launch)
        found = []
        for name, launches in groups.items():
            if not self._driver.record():
                raise EnvironmentLacks(f"{self.level} does not record launches, so single kernels cannot be timed")
            for launch in launches:
                self._launch(launch, sizes, addresses)
            recording, times = self._driver.recorded(), []
            for _ in range(rounds + 1):
                self._driver.synchronize()
                start = time.perf_counter()
                self._driver.replay(recording)
                self._driver.synchronize()
                times.append(time.perf_counter() - start)
            found.append({
                "kernel": name, "launches": len(launches), "seconds": float(np.median(times[1:])),
                "weight_bytes": sum(launch["weight_bytes"] for launch in launches), "module": launches[0]["scope"],
            })  # fmt: skip
        return sorted(found, key=lambda f: -f["seconds"])

    def synchronize(self) -> None:
        """Wait for the device."""
        self._driver.synchronize()

    # --- a step -----------------------------------------------------------------------------------------------------

    def run(self, batch: Batch, carry: npt.NDArray[np.float32] | None = None) -> None:
        """Compute a step; `logits` and `sample` then see its rows. carry: where the plan goes on after layers that are elsewhere, what those
        hand to it, [T, W]."""
        tokens, sequences, rows = int(batch.ids.size), int(batch.pos.size), int(batch.row_tokens.size)
        if tokens > self._max_tokens or sequences > self._max_sequences or rows > self._max_rows or tokens < 1:
            raise LlmcError(f"a step of {tokens} tokens and {sequences} sequences is larger than the executor was made for")
        sizes, addresses = self._stage(batch)
        if carry is not None:
            self._driver.upload(self._carry, as_bytes(carry))
        self._logits = None
        key = tuple(sizes[k] for k in sorted(sizes))
        if tokens == sequences and key in self._graphs:
            self._driver.replay(self._graphs[key])
            return
        recording = tokens == sequences and len(self._graphs) < GRAPHS and self._driver.record()
        for launch in self._step:
            self._launch(launch, sizes, addresses)
        if recording:
            self._graphs[key] = self._driver.recorded()
            self._driver.replay(self._graphs[key])

    def _stage(self, batch: Batch) -> tuple[dict[str, int], dict[str, int]]:
        """Put the step's numbers on the device, in one copy; sizes of the step and where each input lies."""
        counts = np.diff(batch.start)
        ends = batch.pos + counts
        longest = int(ends.max())
        width = min(batch.block_tables.shape[2], self._max_blocks)
        padded = 8
        while padded < width:
            padded *= 2
        tables = np.zeros((self._block_tables, batch.pos.size, padded), np.int32)
        tables[:, :, :width] = batch.block_tables[:, :, :width]
        owner = np.repeat(np.arange(batch.pos.size, dtype=np.int32), counts)
        slots = tables[:, owner, batch.positions // BLOCK] * BLOCK + batch.positions % BLOCK
        splits = 1
        while splits * SPLIT < longest:
            splits *= 2
        part = int(self._plan["part_floats"])
        short = batch.ids.size <= 4 * batch.pos.size
        alone = splits == 1 or batch.ids.size * splits * part * 4 > PART_BYTES or not short
        few = batch.pos.size <= FEW
        if self._joins and few and batch.ids.size == batch.pos.size and (splits == 1 or not alone):
            shape = ONE if splits == 1 else ONE_SPLITS
        elif alone:
            shape = SHORT if short else OTHER
        else:
            shape = FEW_SPLITS if few else SPLITS
        arrays: dict[str, Ints] = {
            "ids": batch.ids, "positions": batch.positions, "rows": batch.row_tokens, "start": batch.start, "pos": batch.pos,
        }  # fmt: skip
        for table in range(self._block_tables):
            arrays[f"slots{table}"], arrays[f"block_tables{table}"] = slots[table], tables[table]
        for size in self._tiles[shape]:
            per = -(-counts // size)
            which = np.repeat(np.arange(counts.size), per)
            first = (np.arange(which.size) - np.repeat(np.cumsum(per) - per, per)) * size
            arrays[f"tiles{size}"] = np.stack([which, first], 1).astype(np.int32)
        addresses, parts, at = {}, [], 0
        for name, array in arrays.items():
            addresses[name] = self._inputs + 4 * at
            flat = np.ascontiguousarray(array, np.int32).reshape(-1)
            pad = -flat.size % 64
            parts += [flat, np.zeros(pad, np.int32)]
            at += flat.size + pad
        self._driver.upload(self._inputs, as_bytes(np.concatenate(parts)))
        sizes = {
            "T": int(batch.ids.size), "S": int(batch.pos.size), "R": int(batch.row_tokens.size), "BLOCKS": padded, "SPLITS": 1 if alone else splits, "STEP": shape, "1": 1,
        }  # fmt: skip
        sizes.update({f"TILES{size}": arrays[f"tiles{size}"].shape[0] for size in self._tiles[shape]})
        return sizes, addresses

    def _chosen(self, launch: dict[str, Any], sizes: dict[str, int]) -> list[Any] | None:
        """A launch's variant for a step of these sizes: most rows, kernel, grid, tile; None where the step has no use for it."""
        if launch["steps"] and sizes["STEP"] not in launch["steps"]:
            return None
        symbol, factor = launch["rows"]
        rows = sizes[symbol] * factor
        return next((v for v in launch["variants"] if v[0] == 0 or rows <= v[0]), None)

    def _launch(self, launch: dict[str, Any], sizes: dict[str, int], addresses: dict[str, int]) -> None:
        variant = self._chosen(launch, sizes)
        if variant is None:
            return
        _, kernel, grid, tile = variant
        if tile:
            sizes["TILES"], addresses["tiles"] = sizes[f"TILES{tile}"], addresses[f"tiles{tile}"]
        x, y, z = (*(-(-sizes[s] * f // d) + sum(plus) for s, f, d, *plus in grid), 1, 1)[:3]
        if x and y and z:
            self._driver.launch(self._kernels[kernel], (x, y, z), [self._value(a, sizes, addresses) for a in launch["arguments"]])

    def _value(self, argument: list[Any], sizes: dict[str, int], addresses: dict[str, int]) -> int:
        kind = argument[0]
        if kind == "buffer":
            return self._buffers[argument[1]] + int(argument[2])
        if kind == "weight":
            return self._weights[argument[1]]
        if kind == "device":
            return self._rows[argument[1]]
        if kind == "table":
            return self._tables[argument[1]]
        if kind == "input":
            name = argument[1]
            if name == CARRY:
                return self._carry + int(argument[2])
            if name in self._draws:
                return self._draws[name]
            return addresses[name if isinstance(name, str) else ("ids", "positions", "rows")[name]]
        if kind in ("cache_k", "cache_v"):
            return self._regions[self._plan["caches"][argument[1]]["region"]][kind == "cache_v"]
        if kind in ("slots", "block_tables"):
            return addresses[f"{kind}{self._plan['caches'][argument[1]]['table']}"]
        if kind == "tiles":
            return addresses["tiles"]
        if kind == "scratch":
            return self._part
        if kind == "output":
            return self._tokens
        if kind == "size":
            return sizes[argument[1]]
        if kind == "count":
            return sizes[argument[1]] * int(argument[2])
        return 0

    # --- results ----------------------------------------------------------------------------------------------------

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """The last step's logits [rows, V]."""
        if self._logits is None or self._logits.shape[0] < rows:
            self._logits = np.empty((rows, self.vocabulary), np.float32)
            self._driver.download(self._buffers[self._plan["logits"]], self._logits)
        return self._logits[:rows]

    def sample(self, rows: Sequence[SamplingRow], top: int = 0, logprobs: bool = False) -> list[Draw]:
        """Draw one token for each row of the last step: on the device, but for rows that change their logits first. How a row is drawn follows
        from its own settings alone, never from its neighbours'."""
        tokens = np.zeros(len(rows), np.int32)
        changed = np.array([host_sampling.changes(r) for r in rows], bool)
        greedy = np.array([r.temperature == 0.0 for r in rows], bool)
        for which, when in ((~changed & greedy, "greedy"), (~changed & ~greedy, "drawn")):
            places = np.flatnonzero(which)
            for at in range(0, places.size, self._max_rows):
                piece = places[at : at + self._max_rows]
                tokens[piece] = self._draw([rows[int(i)] for i in piece], when)
        wanted = logprobs or top > 0
        if not wanted and not changed.any():
            return [Draw(t) for t in tokens.tolist()]
        logits = self.logits(max(r.row for r in rows) + 1)
        for i in np.flatnonzero(changed):
            tokens[i] = host_sampling.choose(rows[int(i)], logits[rows[int(i)].row])
        return [host_sampling.judged(t, logits[r.row], top, wanted) for t, r in zip(tokens.tolist(), rows, strict=True)]

    def _draw(self, rows: Sequence[SamplingRow], when: str) -> Ints:
        """The tokens of rows whose logits are drawn from as they are."""
        if when == "greedy":
            held = [r.row for r in rows]
            if held != self._greedy_rows:
                self._driver.upload(self._draws["sample_rows"], as_bytes(np.array(held, np.int32)))
                self._greedy_rows = held
        else:
            whole = [(r.row, min(r.top_k, self.vocabulary) or self.vocabulary) for r in rows]
            real = [(host_sampling.inverse(r), r.top_p, r.min_p, host_sampling.uniform(r.seed, r.counter)) for r in rows]
            self._driver.upload(self._draws["draw_rows"], as_bytes(np.array(whole, np.int32)))
            self._driver.upload(self._draws["draw_settings"], as_bytes(np.array(real, np.float32)))
        for launch in self._sampling[when]:
            self._launch(launch, {"DRAWS": len(rows), "1": 1}, {})
        tokens = np.empty(len(rows), np.int32)
        self._driver.download(self._tokens, tokens)
        return tokens

    def score(self, targets: Ints) -> npt.NDArray[np.float32]:
        """Log-probability of one target for each row of the last step."""
        logits = self.logits(targets.size)
        return np.array([row[t] - host_sampling.log_sum(row) for row, t in zip(logits, targets, strict=True)], np.float32)

    def copy_block(self, source: int, target: int) -> None:
        for k, v, k_bytes, v_bytes in self._regions.values():
            self._driver.copy(k + source * k_bytes, k + target * k_bytes, k_bytes)
            self._driver.copy(v + source * v_bytes, v + target * v_bytes, v_bytes)

    def copy_state(self, source: int, target: int) -> None:
        raise LlmcError("a plan for a GPU has no recurrent states")

    def portable(self, on: bool) -> None:
        """A GPU has one arithmetic."""

    def close(self) -> None:
        self._driver.close()
