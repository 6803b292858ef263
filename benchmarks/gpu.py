"""GPU targets on a machine that has one: `prepare` compiles with no GPU, `check` and `bench` run there with numpy alone.

`python -m benchmarks.gpu prepare DIR --target cuda:sm_90` writes tiny artifacts with the CPU's logits beside them, and plans without
weights of a large model's shape. `check DIR` compares the device's logits with those, token by token, in chunks and in mixed batches,
which must give equal bits. `bench DIR` times the plans with random weights and prints JSON: decode and prefill, beside the device's own
copy rate and, where torch is installed, its rate of bfloat16 products; where a step's time goes is on standard error. `start DIR` times a
process from its start to its first token.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CHECKED = (
    ("llama", {"dtype": "bf16"}), ("llama", {"dtype": "bf16", "quant": "int4:g32"}), ("llama", {"dtype": "bf16", "quant": "int8"}),
    ("llama", {"dtype": "bf16", "quant": "int4:g64:asym/int8"}), ("qwen3", {"dtype": "bf16", "quant": "fp8"}), ("gemma2", {"dtype": "bf16", "quant": "nf4"}),
    ("gpt2", {"dtype": "f16"}), ("gpt_oss", {"dtype": "bf16"}), ("mixtral", {"dtype": "bf16", "quant": "int4:g32"}), ("bloom", {"dtype": "f32"}),
    ("llama", {"dtype": "bf16", "quant": "int4:g64", "gpu_layers": 1}),
)  # fmt: skip
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "head_dim": 128, "tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"], "model_type": "llama",
}  # fmt: skip
TIMED = (
    ("bf16", {"dtype": "bf16"}),
    ("int4-g128", {"dtype": "bf16", "quant": "int4:g128", "scheme": ("lm_head=bf16", "*embed_tokens=bf16")}),
    ("int8", {"dtype": "bf16", "quant": "int8", "scheme": ("lm_head=bf16", "*embed_tokens=bf16")}),
    ("fp8", {"dtype": "bf16", "quant": "fp8", "scheme": ("lm_head=bf16", "*embed_tokens=bf16")}),
)
COMPARED = (
    ("int8-bf16", {"dtype": "bf16", "quant": "int8:g128/bf16"}), ("int4-int8", {"dtype": "bf16", "quant": "int4:g128/int8"}), ("nf4", {"dtype": "bf16", "quant": "nf4"}),
)  # fmt: skip
TOKENS = 150
CLOSE = 4e-2  # of the largest logit: bfloat16 roundings of cache and activations that fall the other way
SHORT_BLOCKS, LONG_BLOCKS = 64, 256  # of the cache, for 2,048 and 8,192 positions
SPARE = 8 << 30  # bytes of the device for what a step holds beside weights and cache
DRAWS = [(1.0, 1.0, 0.0, 0), (0.7, 0.9, 0.0, 0), (1.3, 1.0, 0.1, 20), (0.9, 0.5, 0.0, 7)]  # temperature, top-p, min-p, top-k
DRAWN_CLOSE = 2e-3  # of all probability: float32 sums, and a border of top-p that falls on the other side
FLIPS = 1 / 50  # of tokens of a mixture of experts: a router's near tie that falls the other way sends one to another expert


def prepare(folder: Path, target: str) -> None:
    """Compile everything that the device needs; no GPU is used."""
    import llmc

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from models import save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    for key, options in CHECKED:
        name = "-".join([key, *map(str, options.values())]).replace(":", "-").replace("/", "-")
        source = folder / f"{key}.checkpoint"
        if not source.exists():
            save_checkpoint(key, source)
        cpu = "cpu" if "gpu_layers" in options else "cpu:native"  # the device's own CPU runs the first layers
        llmc.compile(source, folder / f"{name}.llmc", target=(cpu, target), force=True, **options)
        ids = np.random.default_rng(0).integers(3, 256, TOKENS).tolist()
        with llmc.load(folder / f"{name}.llmc", target="cpu") as model:
            np.savez(folder / f"{name}.npz", ids=ids, logits=model.logits(ids))
        print(name, flush=True)
    shape = folder / "llama-8b.config"
    shape.mkdir(exist_ok=True)
    (shape / "config.json").write_text(json.dumps(LLAMA_8B))
    for name, options in (*((f"{n}.plan", o) for n, o in TIMED), *((f"{n}.bits", o) for n, o in COMPARED)):
        llmc.compile(shape, folder / f"llama-8b-{name}.llmc", target=(target,), weights="none", force=True, **options)
        print(f"llama-8b-{name}", flush=True)


class Session:
    """An executor on the device with a cache, stepped by hand."""

    def __init__(self, path: Path, driver: Any = None, **sizes: Any) -> None:
        from llmc.runtime.artifact import open_artifact
        from llmc.runtime.executors.choose import driver_module, target_entry
        from llmc.runtime.executors.launch import LaunchExecutor
        from llmc.runtime.executors.split import SplitExecutor
        from llmc.runtime.plan import reaches

        self.artifact = open_artifact(path)
        self.tables, self.blocks = len(reaches(self.artifact.manifest)), sizes["blocks"]
        sizes["blocks"] *= self.tables
        target = next(t["name"] for t in self.artifact.manifest["targets"] if not t["name"].startswith("cpu"))
        driver = driver or driver_module(target.partition(":")[0]).open_driver()
        self.executor: Any = (
            SplitExecutor(self.artifact, target, driver, threads=2, **sizes)
            if "first" in target_entry(self.artifact, target)
            else LaunchExecutor(self.artifact, target, driver, **sizes)
        )

    def step(self, parts: list[tuple[np.ndarray, int, list[int]]], every: bool = False) -> None:
        """parts: tokens, the position of the first, blocks, which each table has of its own. Logits of all tokens, or of each part's last."""
        self.executor.run(self.batch(parts, every))

    def batch(self, parts: list[tuple[np.ndarray, int, list[int]]], every: bool = False) -> Any:
        from llmc.runtime.executors.cpu import Batch

        counts = [len(p[0]) for p in parts]
        width = max(len(p[2]) for p in parts)
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        tables = np.array([p[2] + [0] * (width - len(p[2])) for p in parts], np.int32)
        return Batch(
            np.concatenate([p[0] for p in parts]).astype(np.int32),
            np.concatenate([np.arange(p[1], p[1] + len(p[0])) for p in parts]).astype(np.int32),
            start,
            np.array([p[1] for p in parts], np.int32),
            np.stack([tables + self.blocks * i for i in range(self.tables)]),
            np.arange(start[-1], dtype=np.int32) if every else (start[1:] - 1).astype(np.int32),
        )

    def close(self) -> None:
        self.executor.close()
        self.artifact.close()


def prepared(folder: Path, pattern: str, only: str = "") -> list[Path]:
    """What `prepare` left there; ends the process when there is nothing, which must not pass for a check."""
    found = [path for path in sorted(folder.glob(pattern)) if only in path.name]
    if not found:
        sys.exit(
            f"{folder} holds no {pattern}{f' with {only!r} in its name' if only else ''}: `make gpu-prepare` makes them, with no GPU"
        )
    return found


def strange_draws(logits: np.ndarray, drawn: Any, tokens: Any) -> list[int]:
    """Draws that are not where their own number falls in the kept probabilities, in float64, in the order of ids. `drawn`: for each its row of
    `logits`, temperature, top-p, min-p, top-k, and seed; its place is the row."""
    from llmc.runtime.host_sampling import uniform

    found = []
    for i, (row, temperature, top_p, min_p, top_k, seed) in enumerate(drawn):
        x = logits[int(row)].astype(np.float64)
        weights = np.exp((x - x.max()) / temperature)
        ranked = np.argsort(-x, kind="stable")[: int(top_k) or x.size]
        before = np.cumsum(weights[ranked]) - weights[ranked]
        kept = ranked[(before < top_p * weights[ranked].sum()) & (weights[ranked] >= min_p)]
        weights[np.setdiff1d(np.arange(x.size), kept)] = 0
        ends = np.cumsum(weights) / weights.sum()
        at, end = uniform(int(seed), int(row)), ends[tokens[i]]
        if not end - weights[tokens[i]] / weights.sum() - DRAWN_CLOSE <= at <= end + DRAWN_CLOSE:
            found.append(i)
    return found


def in_pieces(session: Session, ids: np.ndarray) -> np.ndarray:
    """Logits of the tokens, a few to a step, some beside another sequence's."""
    other, pieces, at = ids[::-1][:37].copy(), [], 0
    for size in (1, 64, 5, 1, 1, 40):
        session.step([(other, 0, [20, 21]), (ids[at : at + size], at, list(range(10, 18)))], every=True)
        pieces.append(session.executor.logits(37 + size)[37:].copy())
        at += size
    for size in (3, 11, 6, *[1] * (ids.size - at - 20)):
        session.step([(ids[at : at + size], at, list(range(10, 18)))], every=True)
        pieces.append(session.executor.logits(size).copy())
        at += size
    return np.concatenate(pieces)


def check(folder: Path, only: str = "") -> int:
    """Every checked artifact on the device, and the bits of plans of a large model's shape; 1 when one differs."""
    from llmc.runtime.sampling import SamplingRow

    failed = 0
    for path in prepared(folder, "*.npz", only):
        wanted = np.load(path)
        ids, blocks = wanted["ids"].astype(np.int32), list(range(1, 9))
        session = Session(path.with_suffix(".llmc"), max_tokens=192, max_sequences=4, max_rows=192, context=256, blocks=32)
        session.step([(ids, 0, blocks)], every=True)
        whole = session.executor.logits(TOKENS).copy()
        drawn = [(i % TOKENS, *DRAWS[i % len(DRAWS)], 1 + i) for i in range(100)]
        rows = [SamplingRow(r, t, p, m, k, 1.0, 0.0, 0.0, seed, r) for r, t, p, m, k, seed in drawn]
        strange = strange_draws(whole, drawn, [d.token for d in session.executor.sample(rows)])
        parts = in_pieces(session, ids)
        errors = np.abs(whole - wanted["logits"]).max(1) / np.abs(wanted["logits"]).max()
        allowed = int(TOKENS * FLIPS) if path.stem.startswith(("mixtral", "gpt_oss")) else 0
        error = float(np.sort(errors)[-1 - allowed])
        same = parts.tobytes() == whole.tobytes()
        fine = error < CLOSE and same and not strange
        failed += not fine
        print(
            f"{path.stem:32} error {error:.2e} (largest {errors.max():.2e})  {'same bits' if same else f'bits differ by {np.abs(parts - whole).max():.1e}'}  {f'{len(strange)} strange draws  ' if strange else ''}{'ok' if fine else 'FAILED'}",
            flush=True,
        )
        session.close()
    for path in (*sorted(folder.glob("*.plan.llmc")), *sorted(folder.glob("*.bits.llmc"))):
        if only in path.name:
            session = Session(path, max_tokens=192, max_sequences=4, max_rows=192, context=256, blocks=32, random_weights=1)
            ids = np.random.default_rng(1).integers(0, 128000, TOKENS).astype(np.int32)
            session.step([(ids, 0, list(range(1, 9)))], every=True)
            whole = session.executor.logits(TOKENS).copy()
            parts = in_pieces(session, ids)
            fine = bool(np.isfinite(whole).all() and whole.std() > 0 and parts.tobytes() == whole.tobytes())
            failed += not fine
            print(
                f"{path.stem:32} {'same bits  ok' if fine else f'bits differ by {np.abs(parts - whole).max():.1e}  FAILED'}",
                flush=True,
            )
            session.close()
    return int(failed > 0)


def torch_rates() -> dict[str, Any]:
    """What torch reaches on the device: its bfloat16 products, operations a second; {} without torch."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    rate = 20 * 2 * 8192**3 / (time.perf_counter() - start)
    del a, b
    torch.cuda.empty_cache()
    return {"device": torch.cuda.get_device_name(), "torch_bf16_flop_s": rate}


def timed(work: Any, session: Session, reps: int) -> float:
    """Median seconds of a call, the device waited for."""
    work()
    work()
    found = []
    for _ in range(reps):
        session.executor.synchronize()
        start = time.perf_counter()
        work()
        session.executor.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def streamed(work: Any, session: Session, reps: int) -> float:
    """Seconds a call when the next is asked for before the last has ended: what the device takes."""
    work()
    session.executor.synchronize()
    start = time.perf_counter()
    for _ in range(reps):
        work()
    session.executor.synchronize()
    return (time.perf_counter() - start) / reps


def show(name: str, parts: list[dict[str, Any]], copy: float) -> None:
    """Where a step's time goes, on standard error."""
    print(f"{name}: {sum(p['seconds'] for p in parts) * 1e3:.3f} ms in kernels", file=sys.stderr)
    for part in parts[:14]:
        share = f"{part['weight_bytes'] / part['seconds'] / copy:6.1%} of copy" if part["weight_bytes"] else ""
        each = part["seconds"] / part["launches"] * 1e6
        print(
            f"  {part['seconds'] * 1e3:8.3f} ms {part['launches']:4} x {each:8.2f} us  {part['kernel'][:34]:34} {share}  {part['module']}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def bench(folder: Path, only: str = "") -> int:
    """Times of the plans with random weights, as JSON on standard output."""
    from llmc.runtime.artifact import open_artifact
    from llmc.runtime.executors.choose import device_free_bytes
    from llmc.runtime.sampling import SamplingRow

    results: dict[str, Any] = {**torch_rates(), "plans": {}}
    shape = LLAMA_8B
    layers, heads, head = int(shape["num_hidden_layers"]), int(shape["num_attention_heads"]), int(shape["head_dim"])  # type: ignore[call-overload]
    for path in prepared(folder, "*.plan.llmc", only):
        with open_artifact(path) as artifact:
            plan = artifact.manifest["memory_plan"]
            room = device_free_bytes(artifact.manifest["targets"][0]["name"]) - plan["weight_bytes"] - SPARE
        sequences = max(1, min(64, room // plan["cache_bytes_per_block"] // LONG_BLOCKS))
        held = max(64 * SHORT_BLOCKS, sequences * LONG_BLOCKS)
        start = time.perf_counter()
        session = Session(path, max_tokens=8192, max_sequences=64, max_rows=64, context=8192, blocks=held + 1, random_weights=1)
        session.executor.synchronize()
        row: dict[str, Any] = {"load_s": time.perf_counter() - start}
        copy = session.executor.copy_rate()
        parameters = session.artifact.manifest["model"]["parameters"]
        table = int(shape["vocab_size"]) * int(shape["hidden_size"])  # type: ignore[call-overload]
        weights, position = plan["weight_bytes"] - 2 * table, plan["cache_bytes_per_block"] / 32
        token = np.array([17], np.int32)
        many_short = [(token, 2000, list(range(i * SHORT_BLOCKS, (i + 1) * SHORT_BLOCKS))) for i in range(64)]
        many_long = [(token, 8100, list(range(i * LONG_BLOCKS, (i + 1) * LONG_BLOCKS))) for i in range(sequences)]
        greedy = SamplingRow(0, 0.0, 1.0, 0.0, 0, 1.0, 0.0, 0.0, 0, 0)

        def one() -> None:
            session.step([(token, 500, many_short[0][2])])

        def drawn() -> None:
            one()
            session.executor.sample([greedy])

        row["copy_byte_s"] = copy
        row["decode_1_s"] = timed(drawn, session, 30)
        row["decode_1_device_s"] = streamed(one, session, 30)
        read = weights + 500 * position
        row |= {f"decode_1_{k}of_copy": read / row[f"decode_1_{k}s"] / copy for k in ("", "device_")}
        for name, parts in (("64_at_2k", many_short), (f"{sequences}_at_8k", many_long)):
            took = timed(lambda parts=parts: session.step(parts), session, 6)  # type: ignore[misc]
            row[f"decode_{name}_s"], row[f"decode_{name}_tok_s"] = took, len(parts) / took
            row[f"decode_{name}_of_copy"] = (weights + len(parts) * parts[0][1] * position) / took / copy
        prompt = np.random.default_rng(0).integers(0, 1000, 8192 - 32).astype(np.int32)
        part = [(prompt, 0, list(range(256)))]
        prefill = timed(lambda: session.step(part), session, 3)
        attention = layers * 2 * heads * head * len(prompt) ** 2
        row["prefill_8k_s"] = prefill
        row["prefill_done_flop_s"] = (
            2 * (parameters - 2 * table) * len(prompt) + attention
        ) / prefill  # the head runs for the last token alone
        row["prefill_flop_s"] = (
            2 * (parameters - table) * len(prompt) + attention
        ) / prefill  # as if for every token, as is usual
        if "torch_bf16_flop_s" in results:
            row |= {f"prefill{k}_of_torch": row[f"prefill{k}_flop_s"] / results["torch_bf16_flop_s"] for k in ("_done", "")}
        profiled = {
            "1 at 500": [(token, 500, many_short[0][2])],
            "64 at 2k": many_short,
            f"{sequences} at 8k": many_long,
            "8k tokens": part,
        }
        for name, parts in profiled.items():
            profile = session.executor.profile(session.batch(parts))
            show(f"{path.name} {name}", profile, copy)
            row.setdefault("profiles", {})[name] = profile[:14]
            if parts is many_long:
                taken = sum(p["seconds"] for p in profile if p["kernel"].startswith(("attend", "merge")))
                row[f"attention_{sequences}_at_8k_of_copy"] = sequences * 8100 * position / taken / copy
        results["plans"][path.name] = row
        print(json.dumps({path.name: {k: v for k, v in row.items() if k != "profiles"}}), file=sys.stderr, flush=True)
        session.close()
    print(json.dumps(results, indent=1))
    return 0


def fill(plan: Path, out: Path) -> None:
    """A plan without weights → an artifact with random ones. Their SHA-256 is not computed: opening an artifact does not read them."""
    from llmc.runtime.archive import write_archive
    from llmc.runtime.artifact import ALIGN, MANIFEST, WEIGHTS, open_artifact

    with open_artifact(plan) as artifact:
        manifest = dict(artifact.manifest)
        (target,) = manifest["targets"]
        held = json.loads(artifact.read(target["member"]))["weights"]
        files = {m["name"]: artifact.read(m["name"]) for m in manifest["members"]}
    listed = [(str(i), size + -size % ALIGN) for i, (_, size, _) in enumerate(held)]
    entries, at = {}, 0
    for name, size in listed:
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    head = struct.pack("<Q", len(text) + -(8 + len(text)) % ALIGN) + text + b" " * (-(8 + len(text)) % ALIGN)
    plan_json = json.loads(files[target["member"]])
    plan_json["weights"] = [[name, size, pack] for (name, size), (_, _, pack) in zip(listed, held, strict=True)]
    files[target["member"]] = json.dumps(plan_json).encode()
    rng = np.random.default_rng(1)
    normals = (rng.standard_normal(4 << 20, np.float32) * np.float32(0.02)).view(np.uint32) >> 16
    pieces = {"floats:bf16": normals.astype(np.uint16).tobytes()}
    other = (rng.random(2 << 20, np.float32) * np.float32(0.02) + np.float32(0.99)).tobytes()

    def weights() -> Any:
        yield head
        for (_, size), (_, _, pack) in zip(listed, held, strict=True):
            piece = pieces.get(pack, other)
            for start in range(0, size, len(piece)):
                yield piece[: min(len(piece), size - start)]

    members = [{"name": n, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in files.items()]
    members.append({"name": WEIGHTS, "bytes": len(head) + at, "sha256": "0" * 64})
    manifest |= {"members": members, "weights": [list(x) for x in listed]}
    raw = json.dumps(manifest).encode()
    with out.open("w+b") as stream:
        everything = [
            (MANIFEST, len(raw), [raw]),
            *((n, len(data), [data]) for n, data in files.items()),
            (WEIGHTS, len(head) + at, weights()),
        ]
        write_archive(stream, everything, hashlib.sha256(raw).hexdigest())


def first_token(path: Path) -> int:
    """In a process of its own: open an artifact, run a prompt of 16 tokens, draw one; prints the time of day."""
    from llmc.runtime.sampling import SamplingRow

    marks = [("imported", time.time())]
    session = Session(path, max_tokens=512, max_sequences=64, max_rows=64, context=8192, blocks=64 * 32)
    session.executor.synchronize()
    marks.append(("loaded", time.time()))
    session.step([(np.arange(16, dtype=np.int32), 0, [1])])
    token = session.executor.sample([SamplingRow(0, 0.0, 1.0, 0.0, 0, 1.0, 0.0, 0.0, 0, 0)])[0].token
    marks.append(("first_token", time.time()))
    print(json.dumps({"token": token, "foreign": sorted({"torch", "triton"} & set(sys.modules)), **dict(marks)}))
    session.close()
    return 0


def start(folder: Path, scratch: Path) -> int:
    """Seconds from a process's start to its first token, of an artifact with a large model's weights in the page cache."""
    path = scratch / "llmc-start.llmc"
    fill(prepared(folder, "*bf16.plan.llmc")[0], path)
    try:
        rounds = []
        for _ in range(3):
            began = time.time()
            ran = subprocess.run(
                [sys.executable, Path(__file__).with_name("on_device.py"), "first-token", path], capture_output=True, text=True
            )
            if ran.returncode:
                print(ran.stderr[-2000:], file=sys.stderr)
                return 1
            found = json.loads(ran.stdout.splitlines()[-1])
            rounds.append({k: v - began if isinstance(v, float) else v for k, v in found.items()})
        print(json.dumps({"artifact_bytes": path.stat().st_size, "start": rounds}, indent=1))
    finally:
        path.unlink(missing_ok=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "check", "bench", "start", "first-token"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cuda:sm_90")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"), help="where `start` writes an artifact of 16 GB")
    parser.add_argument("--only", default="", help="those whose names contain this")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.folder, options.target)
        return 0
    if options.what == "first-token":
        return first_token(options.folder)
    if options.what == "start":
        return start(options.folder, options.scratch)
    return check(options.folder, options.only) if options.what == "check" else bench(options.folder, options.only)


if __name__ == "__main__":
    sys.exit(main())
