"""The order in which events count: each after all that its writer had seen.  Clocks decide only between those that had not seen
one another."""

from __future__ import annotations

from snapfs.repo.format.records import Event


def in_order(events: dict[bytes, Event]) -> list[bytes]:
    """Names of events, each after all it had seen.  Iterative: a chain is as long as the repository is old."""
    depth: dict[bytes, int] = {}
    stack = list(events)
    on_path: set[bytes] = set()
    while stack:
        name = stack[-1]
        if name in depth:
            stack.pop()
            continue
        below = [h.name for h in events[name].heads if h.name in events]
        waiting = [b for b in below if b not in depth and b not in on_path]
        if waiting:
            on_path.add(name)
            stack += waiting
        else:
            depth[name] = 1 + max((depth.get(b, 0) for b in below), default=0)
            on_path.discard(name)
            stack.pop()
    return sorted(events, key=lambda name: (depth[name], events[name].time, name))
