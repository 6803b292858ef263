"""The state pool: slots for the states of recurrent layers, and snapshots of them where a prefix may be used again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class StatePool:
    """Owns slot ids. A slot is free, a sequence's own, or a snapshot: the states after a prefix, found by its last block's hash.

    `copy(source, target)` copies the states of a slot. Snapshots give way to sequences, the least recently used first. A pool of
    no slots belongs to a model without recurrent layers: it gives slot 0 to everybody, and has no snapshots.
    """

    def __init__(self, count: int, copy: Callable[[int, int], None]) -> None:
        self.count = count
        self._copy = copy
        self._free = list(range(count))[::-1]
        self._used: set[int] = set()
        self._snapshots: OrderedDict[bytes, int] = OrderedDict()

    @property
    def stateful(self) -> bool:
        return self.count > 0

    @property
    def used(self) -> int:
        return len(self._used)

    def allocate(self) -> int | None:
        """A slot of one's own, or None when sequences hold all of them. What is in it is old: position 0 starts anew."""
        if not self.stateful:
            return 0
        slot = self._take()
        if slot is not None:
            self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        if self.stateful:
            self._used.remove(slot)
            self._free.append(slot)

    def clone(self, slot: int) -> int | None:
        """A copy of a sequence's slot, or None when there is no room."""
        made = self.allocate()
        if made is not None and self.stateful:
            self._copy(slot, made)
        return made

    def save(self, name: bytes, slot: int) -> None:
        """Keep a snapshot of a slot under the hash of its prefix, if there is room."""
        if name in self._snapshots:
            self._snapshots.move_to_end(name)
            return
        target = self._take()
        if target is not None:
            self._copy(slot, target)
            self._snapshots[name] = target

    def holds(self, name: bytes) -> bool:
        return name in self._snapshots

    def restore(self, name: bytes, slot: int) -> None:
        """Bring a snapshot into a sequence's slot."""
        self._copy(self._snapshots[name], slot)
        self._snapshots.move_to_end(name)

    def drop(self, name: bytes) -> None:
        """Forget a snapshot, if there is one: its blocks are gone, or a later one replaces it."""
        slot = self._snapshots.pop(name, None)
        if slot is not None:
            self._free.append(slot)

    def _take(self) -> int | None:
        if self._free:
            return self._free.pop()
        if not self._snapshots:
            return None
        return self._snapshots.popitem(last=False)[1]

    def check_integrity(self) -> None:
        """Assert that every slot is exactly one of free, used, or a snapshot."""
        held = sorted([*self._free, *self._used, *self._snapshots.values()])
        assert held == list(range(self.count)), held
