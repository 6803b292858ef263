"""Errors that a user can meet; each class is tied to an exit status in docs/cli.md."""

from __future__ import annotations

import signal


class LlmcError(Exception):
    """An error with a message for a person, a hint that says what to do, and an exit status."""

    exit_status = 70

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(LlmcError):
    """An unknown option, value or name, or an impossible setting."""

    exit_status = 2


class UnsupportedError(LlmcError):
    """Known, but not supported for this model or target."""

    exit_status = 3


class InputError(LlmcError):
    """Unreadable or invalid input."""

    exit_status = 4


class CheckpointError(InputError):
    """A checkpoint that cannot be read or contradicts itself."""


class ArtifactError(InputError):
    """An artifact that is truncated, altered, of another version or hostile."""


class RecipeError(InputError):
    """A recipe file that is not valid YAML or does not follow the schema."""


class EnvironmentLacks(LlmcError):
    """A package, compiler, device, port or disk space is missing."""

    exit_status = 5


class GateFailed(LlmcError):
    """A quality gate was not met, or a canary, rebuild or signature does not match."""

    exit_status = 1


class VerifyError(LlmcError):
    """The IR is not valid: a bug in a pass, or a damaged textual IR."""

    exit_status = 70


class RequestError(LlmcError):
    """A request that the server refuses; becomes an HTTP status."""

    exit_status = 2

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.kind = kind
        self.code = code


def nearest(name: str, valid: list[str] | tuple[str, ...]) -> str:
    """A hint that names the nearest of the valid names, and lists them when they are few."""
    import difflib

    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    known = f"known: {', '.join(sorted(valid))}" if len(valid) <= 40 else ""
    return "; ".join(filter(None, [f"did you mean {close[0]!r}?" if close else "", known]))


class Interrupts:
    """Ctrl-C that no library can swallow: the exception is raised where it lands, and `check` raises it again later."""

    def __init__(self) -> None:
        self.seen = False

    def install(self) -> None:
        """Take SIGINT, unless it is ignored (a job in the background) or somebody else's; main thread only."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)

    def check(self) -> None:
        """Raises KeyboardInterrupt where an earlier one was lost."""
        if self.seen:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: object) -> None:
        self.seen = True
        raise KeyboardInterrupt


interrupts = Interrupts()
