"""Verifying an artifact: its hashes, its canary, and its detached signature."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, EnvironmentLacks, InputError
from .api import load
from .artifact import Artifact, Check
from .cpu_info import available_levels


def check_hashes(artifact: Artifact) -> list[Check]:
    """Every member's SHA-256 and CRC-32; raises ArtifactError at the first that does not match."""
    artifact.check_weights()
    with artifact.path.open("rb") as stream:
        for member in artifact.members.values():
            stream.seek(member.offset)
            crc, left = 0, member.size
            while left:
                chunk = stream.read(min(left, 8 << 20))
                if not chunk:
                    raise ArtifactError(f"{artifact.path.name}: {member.name} is cut short")
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
            if crc != member.crc:
                raise ArtifactError(
                    f"{artifact.path.name}: the checksum of {member.name} does not match",
                    "the file is altered: fetch or compile it again",
                )
    return [
        Check("structure", True, "the archive is in its one canonical form"),
        Check("hashes", True, f"{len(artifact.members)} members match"),
    ]


def check_canary(artifact: Artifact) -> list[Check]:
    """Run the canary on every level that the file and this CPU have; the logits must be equal to the bit."""
    canary = artifact.manifest["canary"]
    if not canary:
        return [Check("canary", True, "none: the artifact has no weights, or was compiled where it could not run")]
    held = {t["isa"] for t in artifact.manifest["targets"] if t["name"].startswith("cpu:")}
    levels = [name for name in available_levels() if name in held]
    if not levels:
        return [Check("canary", True, "not run: no target of the file runs on this machine")]
    checks = []
    for level in levels:
        with load(artifact.path, isa=level, max_batch=2) as model:
            got = [model.logits_hash(s) for s in canary["sequences"]]
        same = got == canary["sha256"]
        checks.append(
            Check(
                f"canary {level}",
                same,
                "the logits are those of the compile, to the bit" if same else "the logits differ from those of the compile",
            )
        )
    return checks


def sign(artifact: Path, private_key: Path, out: Path) -> None:
    """Write a detached signature of the file. Raises InputError for an unusable key, EnvironmentLacks without the library."""
    signing = _library()
    _need(private_key, "private key")
    hint = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if not isinstance(load_pem_private_key(private_key.read_bytes(), None), EllipticCurvePrivateKey):
            raise InputError(f"{private_key} is not an elliptic-curve key", hint)
        signing.signing.Config().use_elliptic_key_signer(private_key=private_key).sign(artifact, out)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{private_key} is not a usable private key: {error}", hint) from error


def check_signature(artifact: Path, signature: Path, public_key: Path) -> Check:
    """Whether the signature is this file's, by this key."""
    signing = _library()
    _need(signature, "signature")
    _need(public_key, "public key")
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        if not isinstance(load_pem_public_key(public_key.read_bytes()), EllipticCurvePublicKey):
            raise ValueError("it is not an elliptic-curve key")
    except (ValueError, OSError) as error:
        raise InputError(
            f"{public_key} is not a usable public key: {error}", "make one with: openssl ec -in key.pem -pubout"
        ) from error
    try:
        signing.verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(artifact, signature)
    except OSError as error:
        raise InputError(f"the signature cannot be checked: {error}") from error
    except Exception as error:  # the library has no common class for a signature that does not match
        return Check("signature", False, f"does not match: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return Check("signature", True, "made by this key for this file")


def default_signature(artifact: Path) -> Path:
    """Where `llmc sign` puts a signature: beside the artifact."""
    return artifact.with_name(artifact.name + ".sig")


def _need(path: Path, what: str) -> None:
    if not path.is_file():
        raise InputError(f"the {what} {path} does not exist")


def _library() -> Any:
    try:
        import model_signing
        import model_signing.signing
        import model_signing.verifying
    except ModuleNotFoundError as error:
        raise EnvironmentLacks(f"signatures need the package {error.name}", "install the `sign` extra") from error
    return model_signing
