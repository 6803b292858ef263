"""`make bench-http`: servers of the same model under the same load, made by guidellm, a public load generator, through the OpenAI API.

Each server answers `--requests` times as many requests as are kept open at once, of 128 random words' tokens in and 128 out, streamed. The server
and the load generator share this machine's processors, so `llmc bench` without HTTP is timed beside them, and a load generator that works harder
for more tokens a second weighs on the faster server. With `--light` the load is light_load.py's, which takes little of the processors. Writes benchmarks/results/DATE-http-MODEL-LEVEL.json and a table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llmc

from benchmarks.compare import PEERS, SETTINGS, Peer, commit, machine, peer_python, prepared, slug, summary, time_llmc
from benchmarks.light_load import GENERATE, PROMPT

GUIDELLM = Peer("guidellm", ("guidellm==0.8.1",), "guidellm", {})
FIGURES = ("output_tok_s", "ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s", "load_cpu_s")


@dataclass(frozen=True)
class Server:
    """What starts a server; `--host` and `--port` are added."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The address of a server that answers, on a port of its own; it is ended afterwards."""
    port, name = free_port(), server.command[0]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [*server.command, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **server.environment})
        try:
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"{name} ended with {process.returncode}: {log.read().decode()[-400:]}")
                try:
                    with urllib.request.urlopen(f"{address}/v1/models", timeout=2):
                        break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.5)
            else:
                raise RuntimeError(f"{name} does not answer within five minutes")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def light_load(address: str, at_once: int, requests: int) -> dict[str, float]:
    """What light_load.py saw of `requests` requests, `at_once` of them open at a time."""
    with urllib.request.urlopen(f"{address}/v1/models", timeout=10) as answer:
        model = json.load(answer)["data"][0]["id"]
    command = [sys.executable, "-m", "benchmarks.light_load", address, model, str(at_once), str(requests)]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))


def load(guidellm: Path, address: str, tokenizer: Path, at_once: int, requests: int) -> dict[str, float]:
    """What guidellm saw of `requests` requests, `at_once` of them open at a time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                str(guidellm.parent / "guidellm"), "run", "--disable-console",
                "--backend", f"kind=openai_http,target={address},request_format=/v1/completions",
                "--profile", f"kind=concurrent,streams={at_once}", "--constraint", f"kind=max_requests,count={requests}",
                "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={GENERATE}",
                "--tokenizer", f"kind=hf_auto,model={tokenizer}", "--output", f"kind=json,path={report}",
            ],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
        metrics = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = {
        name: metrics[name]["successful"]
        for name in ("output_tokens_per_second", "time_to_first_token_ms", "inter_token_latency_ms")
    }
    first, between = done["time_to_first_token_ms"]["percentiles"], done["inter_token_latency_ms"]["percentiles"]
    figures = (
        done["output_tokens_per_second"]["mean"],
        first["p50"] / 1e3,
        first["p99"] / 1e3,
        between["p50"] / 1e3,
        between["p99"] / 1e3,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )
    return dict(zip(FIGURES, figures, strict=True))


def servers(options: argparse.Namespace, artifact: Path, work: Path) -> dict[str, Server]:
    """Each server by its name, with its model."""
    threads, most = str(options.threads), max(options.at_once)
    wanted = {"vllm"} - set(options.without) | ({"llama.cpp"} if options.llama_server else set())
    peers = {peer.name: (peer, peer_python(peer, Path(options.peers))) for peer in PEERS if peer.name in wanted}

    def model_of(name: str, row: str) -> Path | None:
        peer, python = peers.get(name, (None, None))
        return prepared(peer, python, Path(options.source), work, row) if peer and python else None

    tool = str(Path(sys.executable).parent / "llmc")
    found = {f"llmc {options.scheme}": Server([tool, "run", str(artifact), "--max-batch", str(most), "--threads", threads])}
    if model := model_of("vllm", "8 bits"):
        command = [
            str(peers["vllm"][1]), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "bfloat16",
            "--max-model-len", "2048", "--max-num-seqs", str(most), "--no-enable-prefix-caching",
        ]  # fmt: skip
        environment = {"OMP_NUM_THREADS": threads, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
        found[f"vllm {model.stem.removeprefix('vllm-')}"] = Server(command, environment)
    if options.llama_server and (model := model_of("llama.cpp", "4 bits")):
        context = str((PROMPT + GENERATE + 64) * most)
        found["llama-server q4_0"] = Server(
            [options.llama_server, "-m", str(model), "-t", threads, "-np", str(most), "-c", context, "-fa", "off", "-no-kvu"]
        )
    return found


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']['cpu']}, {result['threads']} threads shared by server and load ({', '.join(result['load'])}), {result['reps']} alternating repetitions,"
        f" medians (min to max); {PROMPT} tokens in and {GENERATE} out, streamed; commit {result['commit']}",
        "",
        "| requests at once | server | output tokens/s | to first token p50, p99 | between tokens p50, p99 | processor time of the load |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        for name, got in row["servers"].items():
            if isinstance(got, str):
                lines.append(f"| {row['at_once']} | {name}: {got} | | | | |")
                continue
            rate, first, first99, between, between99, used = (got[f] for f in FIGURES)
            lines.append(
                f"| {row['at_once']} | {name} | {rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f}) |"
                f" {first['median']:.2f} s, {first99['median']:.2f} s | {1e3 * between['median']:.0f} ms, {1e3 * between99['median']:.0f} ms |"
                f" {used['median']:.1f} s |"
            )
        lines.append(
            f"| {row['at_once']} | llmc without HTTP | {row['alone']['median']:.0f} ({row['alone']['min']:.0f} to {row['alone']['max']:.0f}) | | | |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="the model as a GGUF file")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--scheme", default="int4:g32/int8", help="llmc's scheme; vLLM takes its 8 bits, llama.cpp its Q4_0")
    parser.add_argument("--at-once", type=lambda text: [int(n) for n in text.split(",")], default=[32, 100], metavar="N,N")
    parser.add_argument("--light", action="store_true", help="the load of light_load.py, without guidellm")
    parser.add_argument("--requests", type=int, default=2, help="as many times the number at once")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", default=".build/peers")
    parser.add_argument("--work", default=".build/bench")
    parser.add_argument("--without", action="append", default=[], choices=["vllm"], help="leave this server out")
    parser.add_argument("--llama-server", metavar="BINARY", help="llama.cpp's server, built for this machine")
    options = parser.parse_args()
    work = Path(options.work) / slug(Path(options.source).stem)
    work.mkdir(parents=True, exist_ok=True)
    guidellm = None if options.light else peer_python(GUIDELLM, Path(options.peers))
    if guidellm is None and not options.light:
        return 3
    artifact, tokenizer = work / f"{slug(options.scheme)}.llmc", work / "tokenizer"
    llmc.compile(options.source, artifact, quant=options.scheme, target="cpu:native", force=True)
    if not tokenizer.exists():
        from transformers import AutoTokenizer

        path = Path(options.source)
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(tokenizer)

    def loaded(address: str, at_once: int, requests: int) -> dict[str, float]:
        return load(guidellm, address, tokenizer, at_once, requests) if guidellm else light_load(address, at_once, requests)

    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    without: dict[int, list[float]] = {n: [] for n in options.at_once}
    failed: dict[str, str] = {}
    against = servers(options, artifact, work)
    for rep in range(options.reps):
        for name, server in against.items():
            print(f"{name}: {rep + 1} of {options.reps}", file=sys.stderr, flush=True)
            try:
                with serving(server) as address:
                    loaded(address, 4, 4)  # what comes first is slow everywhere
                    for n in options.at_once:
                        found.setdefault((n, name), []).append(loaded(address, n, n * options.requests))
            except (RuntimeError, subprocess.CalledProcessError, KeyError) as error:
                failed[name] = " ".join(f"does not run here: {str(error)[-200:]}".split())
        for n in options.at_once:
            got = time_llmc(artifact, {**SETTINGS, "concurrency": [n], "threads": options.threads})
            without[n].append(got[f"at_once_{n}"])
    here = machine()
    rows = []
    for n in options.at_once:
        figures: dict[str, Any] = {
            name: {f: summary([m[f] for m in got]) for f in FIGURES} for (at, name), got in found.items() if at == n
        }
        rows.append({"at_once": n, "servers": {**figures, **failed}, "alone": summary(without[n])})
    result = {
        "machine": here, "threads": options.threads, "reps": options.reps, "commit": commit(), "date": datetime.date.today().isoformat(),
        "load": list(GUIDELLM.requirements) if guidellm else ["light_load.py"], "rows": rows,
    }  # fmt: skip
    stem = (
        Path(options.out)
        / f"{result['date']}-http{'-light' if options.light else ''}-{slug(Path(options.source).stem)}-{here['levels'][0]}"
    )
    stem.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    Path(f"{stem}.md").write_text(table(result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
