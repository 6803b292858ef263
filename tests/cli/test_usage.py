"""Help, unknown names and the executable itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    "compile",
    "run",
    "generate",
    "chat",
    "eval",
    "bench",
    "inspect",
    "verify",
    "sign",
    "opt",
    "explain",
    "export",
    "tune",
    "doctor",
)
OPTIONS = {
    "compile": "--out --quant --dtype --kv-dtype --scheme --activations --group-size --asymmetric --algorithm --calibration --target-size --plot --target --gpu-layers --cc --tuning --context --weights --lora --trust-remote-code --max-kl --strict --dump-ir --recipe --json --debug",
    "run": "--host --port --kv-cache --max-batch --served-model-name --api-key --drain --verify --threads --target --isa",
    "generate": "--prompt --prompt-file --input-ids --chat --max-tokens --temperature --top-p --seed --stop --threads --target --isa --json",
    "chat": "--threads --target --isa",
    "eval": "--text --window --windows --reference --fail-if --input-ids --logits-out --chunk --schedule-seed --threads --target --isa --json",
    "bench": "--prompt-len --gen-len --concurrency --concurrent-prompt-len --concurrent-gen-len --reps --profile --threads --target --isa --json",
    "inspect": "--json",
    "verify": "--rebuild --signature --public-key --json",
    "sign": "--private-key --json",
    "opt": "--passes",
    "explain": "--json",
    "export": "--from --format --quant --json",
    "tune": "--out",
    "doctor": "--json",
}


def test_the_help_lists_every_command(llmc):
    shown = llmc("--help").out
    for name in COMMANDS:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_names_its_options(llmc, command):
    shown = llmc(command, "--help")
    assert shown.err == ""
    assert f"Usage: llmc {command}" in shown.out
    for option in OPTIONS[command].split():
        assert option in shown.out, option


def test_the_version(llmc):
    from llmc.version import VERSION

    assert VERSION in llmc("--version").out


@pytest.mark.parametrize(
    ("args", "nearest"),
    [
        (["compil"], "compile"), (["generat", "x"], "generate"), (["inspect", "x", "--jsn"], "--json"), (["generate", "x", "--promt", "a"], "--prompt"), (["run", "x", "--prot", "1"], "--port"),
        (["compile", "SRC", "-o", "x.llmc", "--quant", "int44"], "int4"), (["compile", "SRC", "-o", "x.llmc", "--quant", "int4:g64:asymm"], "asym"), (["compile", "SRC", "-o", "x.llmc", "--quant", "int4/bf15"], "bf16"),
        (["compile", "SRC", "-o", "x.llmc", "--scheme", "*=int9"], "int8"), (["compile", "SRC", "-o", "x.llmc", "--target", "cpu:natve"], "cpu:native"), (["compile", "SRC", "-o", "x.llmc", "--target", "cup"], "cpu"),
        (["compile", "SRC", "-o", "x.llmc", "--dtype", "bf61"], "bf16"), (["compile", "SRC", "-o", "x.llmc", "--kv-dtype", "int9"], "int8"), (["compile", "SRC", "-o", "x.llmc", "--algorithm", "rtm"], "rtn"),
        (["compile", "SRC", "-o", "x.llmc", "--weights", "al"], "all"), (["export", "x", "--from", "SRC", "--format", "dens"], "dense"), (["eval", "ART", "--text", "x", "--fail-if", "perplexit>3"], "perplexity"),
        (["opt", "x.ir", "--passes", "simplifi"], "simplify"), (["opt", "x.ir", "--passes", "quantize{schem=int4}"], "scheme"), (["generate", "ART", "--prompt", "x", "--isa", "x86-64-v5"], "x86-64-v"),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else v,
)  # fmt: skip
def test_an_unknown_name_is_2_and_names_the_nearest(fails, source, artifact, here, args, nearest):
    message = fails(2, *[{"SRC": source, "ART": artifact}.get(a, a) for a in args])
    assert nearest in message.replace(str(source), "").replace(str(artifact), "")
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "args",
    [
        ["compile"], ["compile", "SRC"], ["compile", "-o", "x.llmc"], ["generate", "ART"], ["generate", "ART", "--prompt", "a", "--input-ids", "1"], ["generate", "ART", "--prompt", "a", "--max-tokens", "0"],
        ["generate", "ART", "--prompt", "a", "--temperature", "-1"], ["generate", "ART", "--prompt", "a", "--top-p", "2"], ["generate", "ART", "--input-ids", "1,x"], ["generate", "ART", "--input-ids", "1,384"], ["generate", "ART", "--input-ids", "-1"],
        ["generate", "ART", "--input-ids", "1", "--chat"], ["generate", "ART", "--prompt", "a", "--threads", "0"], ["eval", "ART"], ["eval", "ART", "--text", "a", "--input-ids", "b"], ["eval", "ART", "--input-ids", "b"], ["eval", "ART", "--text", "SELF", "--window", "0"],
        ["eval", "ART", "--text", "SELF", "--window", "9999"], ["eval", "ART", "--text", "a", "--fail-if", "nll"], ["eval", "ART", "--text", "a", "--fail-if", "nll>x"], ["eval", "ART", "--text", "a", "--fail-if", "kl_mean>1"],
        ["verify", "ART", "--signature", "x"], ["sign", "ART"], ["run", "ART", "--port", "70000"], ["run", "ART", "--port", "0", "--kv-cache", "1B"], ["run", "ART", "--port", "0", "--kv-cache", "lots"], ["run", "ART", "--port", "0", "--max-batch", "0"], ["run", "ART", "--port", "0", "--max-batch", "1000000"],
        ["compile", "SRC", "-o", "x.llmc", "--context", "-1"], ["compile", "SRC", "-o", "x.llmc", "--context", "99999"], ["compile", "SRC", "-o", "no/such/x.llmc"], ["compile", "SRC", "-o", "x.llmc", "--scheme", "int4"], ["compile", "SRC", "-o", "x.llmc", "--quant", "int4", "--scheme", "model.nothing.*=int8"],
        ["eval", "ART", "--text", "SELF", "--chunk", "3"], ["eval", "ART", "--text", "SELF", "--logits-out", "x"], ["eval", "ART", "--input-ids", "a", "--logits-out", "b", "--fail-if", "nll>1"], ["eval", "ART", "--input-ids", "a", "--logits-out", "b", "--schedule-seed", "-5"],
        ["compile", "SRC", "-o", "x.llmc", "--max-kl", "nan"], ["compile", "SRC", "-o", "x.llmc", "--max-kl", "-1"], ["compile", "SRC", "-o", "x.llmc", "--activations", "int8"], ["compile", "SRC", "-o", "x.llmc", "--group-size", "32"], ["compile", "SRC", "-o", "x.llmc", "--quant", "fp8", "--asymmetric"],
        ["compile", "SRC", "-o", "x.llmc", "--target", "cuda:sm_91"], ["run", "ART", "--port", "0", "--kv-cache", "100TB"], ["generate", "ART", "--prompt", "a", "--seed", "99999999999999999999"], ["generate", "ART", "--prompt", "a", "--target", "gpu"],
        ["compile", "SRC", "-o", "x.llmc", "--group-size", "-4", "--quant", "int4"], ["export", "x", "--format", "dense"], ["opt", "x.ir"],
    ],
    ids=lambda v: " ".join(v)[:60],
)  # fmt: skip
def test_impossible_usage_is_2(fails, source, artifact, here, args):
    fails(2, *[{"SRC": source, "ART": artifact, "SELF": __file__}.get(a, a) for a in args])
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "args",
    [
        ["export", "x", "--from", "SRC", "--format", "awq", "--quant", "int8"],
    ],
    ids=lambda v: " ".join(v)[:70],
)  # fmt: skip
def test_what_is_known_but_not_built_is_3(fails, source, here, args):
    """Or works, once it is built: then this line goes away."""
    fails(3, *[{"SRC": source}.get(a, a) for a in args])
    assert not list(here.iterdir())


def test_a_missing_extra_names_the_distribution(llmc, artifact, source, monkeypatch, here):
    """What an install without the compile extra says: the package that is missing, and how this distribution calls itself."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "yaml", None)
    (here / "r.yaml").write_text("quant: int4\n")
    message = llmc("compile", "--recipe", "r.yaml", "--json", status=5).json["error"]
    assert "yaml" in message["message"]
    assert "[compile]" in message["hint"] and "'llmc[" not in message["hint"]


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--help"], 0),
        (["doctor", "--json"], 0),
        (["inspect", "/no/such.llmc", "--json"], 4),
        (["compil"], 2),
        (["generate", "ART", "--prompt", "The keeper", "--max-tokens", "4", "--json"], 0),
        ([], None),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else str(v),
)
def test_the_executable(artifact, args, status):
    command = Path(sys.executable).parent / "llmc"
    if not command.exists():
        pytest.skip("llmc is not installed as a command here")
    done = subprocess.run(
        [str(command), *[str(artifact) if a == "ART" else a for a in args]],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in ((0, 2) if status is None else (status,))
    if "--json" in args:
        assert isinstance(json.loads(done.stdout), dict)


def test_no_command_shows_the_help(llmc, capsys):
    from llmc.cli.main import run

    assert run([]) in (0, 2)
    out, err = capsys.readouterr()
    assert "Commands:" in out + err


def test_a_closed_pipe_is_no_error(artifact):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c 'from llmc.cli.main import main; main()' inspect {artifact} | head -c 10"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_debug_shows_the_traceback(capsys):
    from llmc.cli.main import run

    assert run(["inspect", "/no/such.llmc", "--debug"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_doctor(llmc):
    value = llmc("doctor", "--json").json
    assert {"llmc", "python", "machine", "threads", "runs", "compiles", "packages", "missing"} <= set(value)
    assert value["missing"] == []
    assert any(t.startswith("cpu:") for t in value["runs"])
    assert "runs:" in llmc("doctor").out
