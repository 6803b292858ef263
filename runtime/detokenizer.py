"""From tokens to text, as they come: whole characters only, and nothing that may still become a stop string."""

from __future__ import annotations

from typing import Any


class Detokenizer:
    """Text of one sequence. `push(token)` gives what may be shown; `finish()` the rest.

    With stop strings, text that could be the beginning of one is held back; at the stop string the text ends before it and
    `stopped` is true.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._stop = stop
        self._held = ""
        self._produced = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes certain; empty inside a character, or while a stop string may be coming."""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._produced += len(piece)
        return self._release(piece)

    def finish(self) -> str:
        """What is left at the end: held-back text, and the bytes of a character that never became whole."""
        if self.stopped:
            return ""
        full = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        rest = full[self._produced :] if len(full) > self._produced else ""
        piece = self._release(rest) + ("" if self.stopped else self._held)
        self._held = ""
        return piece

    def _release(self, piece: str) -> str:
        self._held += piece
        if not self._stop:
            out, self._held = self._held, ""
            return out
        ends = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if ends:
            out, self._held, self.stopped = self._held[: min(ends)], "", True
            return out
        keep = max(
            (n for s in self._stop for n in range(1, min(len(s), len(self._held) + 1)) if self._held.endswith(s[:n])), default=0
        )
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out
