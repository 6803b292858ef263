"""`make demo`: compile a small real model, serve it on a free port, ask one chat completion, print what came out, stop."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

QUESTION = "What is the capital of France, and what is it known for?"


def main() -> int:
    source, out = sys.argv[1], Path(sys.argv[2])
    llmc = str(Path(sys.executable).parent / "llmc")
    done = subprocess.run(
        [llmc, "compile", source, "-o", str(out), "--quant", "int8:channel/bf16", "--target", "cpu", "--force", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    report = json.loads(done.stdout)
    if done.returncode:
        print(f"compile failed: {report}", file=sys.stderr)
        return done.returncode
    print(
        f"compiled {out}: {report['bytes'] / 1e6:.1f} MB, mean KL from the original {report['conformance'].get('kl_mean')}, {sum(report['seconds'].values()):.0f} s"
    )
    server = subprocess.Popen([llmc, "run", str(out), "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        print(f"serving at {address}/v1")
        body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 96}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=300) as response:
            answer = json.load(response)
        seconds = time.perf_counter() - start
        tokens = answer["usage"]["completion_tokens"]
        print(
            f"\n> {QUESTION}\n{answer['choices'][0]['message']['content']}\n\n{tokens} tokens in {seconds:.2f} s ({tokens / seconds:.0f} tokens a second, the prompt included)"
        )
    finally:
        server.terminate()
        status = server.wait(timeout=60)
    print(f"\nnext: .venv/bin/llmc chat {out}    or    .venv/bin/llmc run {out}")
    return status


if __name__ == "__main__":
    sys.exit(main())
