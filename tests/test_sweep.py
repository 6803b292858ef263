"""A sample of the decoders in transformers, another one each day: what docs/models.md says of each is true."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAMPLE = 10


def listed() -> dict[str, str]:
    """Configuration → what came of it, from docs/models.md."""
    rows = (line.split("|") for line in (ROOT / "docs" / "models.md").read_text().splitlines() if re.match(r"\| [a-z]", line))
    return {row[1].strip(): row[2].strip() for row in rows if row[1].strip() != "configuration"}


def test_nothing_in_the_list_is_wrong():
    assert {"passes", "refused"} <= set(listed().values())
    assert not [key for key, status in listed().items() if "wrong" in status or "fails" in status]


def test_a_sample_of_the_list(tmp_path):
    tried = sorted(key for key, status in listed().items() if status in ("passes", "refused"))
    day = datetime.date.today().toordinal()
    sample = [tried[(day * SAMPLE + i) % len(tried)] for i in range(SAMPLE)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sweep", *sample, "--workers", "1", "--json", str(tmp_path / "found.json")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    found = {row["key"]: row for row in json.loads((tmp_path / "found.json").read_text())}
    wrong = {k: (listed()[k], row["status"], row["reason"]) for k, row in found.items() if row["status"] != listed()[k]}
    assert not wrong, done.stdout


@pytest.mark.parametrize("key", ["falcon@alibi", "deepseek_v2", "bart"])
def test_what_is_easily_lost(tmp_path, key):
    """Constants and complex numbers on the meta device, and models that number tokens themselves."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.sweep", key, "--bf16"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "passes" in done.stdout, done.stdout
