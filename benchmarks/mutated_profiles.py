# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutated files of profiles: each is measured anew with a warning, or right; none takes over 2 s or 1 GiB."""

from __future__ import annotations

import json
import logging
import math
import random
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..stability.profile import Effort, Profile, level_sigmas, measure
from ..stability.store import TENSORS, Store

KEY = "a model"
DIGITS, DEPTH = 5000, 100_000
"""Of numbers and of nesting in JSON that is mutated."""


def small_profile() -> Profile:
    """Of one wide Gaussian in 16 dimensions: two probes, eight levels."""
    effort = Effort(levels=8, probes=2, directions=1)
    noise = 14.6 * torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = level_sigmas(14.6, 0.03, effort.levels, flow=False)
    return measure(
        lambda x, sigma: x / (1 + sigma**2), noise, sigmas, effort.directions, False, lambda made, of: None
    )


def mutations(whole: bytes, count: int, random: random.Random) -> Iterator[tuple[str, bytes]]:
    """(kind, content) of ``count`` files, from bytes flipped anywhere to headers that say something else."""
    kinds = {
        "flipped": _flipped,
        "header flipped": lambda content, random: _flipped(content, random, 8 + _header_length(content)),
        "cut": lambda content, random: content[: random.randrange(len(content))],
        "longer": lambda content, random: content + random.randbytes(random.randrange(1, 4096)),
        "part repeated": _repeated,
        "zeros": _zeros,
        "header": _other_header,
        "header length": lambda content, random: random.randbytes(8) + content[8:],
        "noise": lambda content, random: random.randbytes(random.randrange(4096)),
    }
    names = list(kinds)
    for n in range(count):
        name = names[n % len(names)]
        yield name, kinds[name](whole, random)


def _header_length(whole: bytes) -> int:
    return int.from_bytes(whole[:8], "little")


def _flipped(whole: bytes, random: random.Random, end: int | None = None) -> bytes:
    content = bytearray(whole)
    for _ in range(random.choice((1, 1, 2, 16))):
        content[random.randrange(end or len(content))] ^= 1 << random.randrange(8)
    return bytes(content)


def _repeated(whole: bytes, random: random.Random) -> bytes:
    start, length, at = (random.randrange(len(whole)) for _ in range(3))
    return whole[:at] + whole[start : start + length] + whole[at:]


def _zeros(whole: bytes, random: random.Random) -> bytes:
    start, length = random.randrange(len(whole)), random.randrange(1, 256)
    return whole[:start] + bytes(len(whole[start : start + length])) + whole[start + length :]


def _other_header(whole: bytes, random: random.Random) -> bytes:
    """One entry of the header replaced."""
    length = _header_length(whole)
    header = json.loads(whole[8 : 8 + length])
    values: tuple[Any, ...] = (None, -1, 5, 2**63, 1e308, "", "F64", [], {}, [2**31] * 4, "[" * DEPTH)
    entry = random.choice([*TENSORS, "__metadata__"])
    part = random.choice(list(header[entry]))
    other: Any = random.choice(values)
    if part == "scalars":
        other = random.choice(
            ('{"flow": 5, "calls": 1}', '{"flow": NaN, "calls": 1}', "[" * DEPTH, "9" * DIGITS, "", "null")
        )
    if random.random() < 0.2:
        header[entry] = other
    else:
        header[entry][part] = other
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def run(quick: bool) -> list[dict[str, Any]]:
    """A row a kind of mutation: how many were measured anew, how many were right, and what they took."""
    logging.getLogger("dizzydiff").setLevel(logging.ERROR)
    right = small_profile()
    kinds: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.save(KEY, right)
        path = store.path(KEY)
        for kind, content in mutations(path.read_bytes(), 300 if quick else 3000, random.Random(0)):
            path.write_bytes(content)
            row = kinds.setdefault(kind, Counter())
            outcome, seconds, peak = _load(store, right)
            row[outcome] += 1
            row["milliseconds"] = max(row["milliseconds"], math.ceil(1000 * seconds))
            row["bytes"] = max(row["bytes"], peak)
    return [
        {"kind": kind, "files": row["anew"] + row["right"] + row["wrong"], **row}
        for kind, row in kinds.items()
    ]


def _load(store: Store, right: Profile) -> tuple[str, float, int]:
    """ "anew", "right" or "wrong"; seconds and the peak of bytes allocated by Python. An error is raised."""
    tracemalloc.start()
    started = time.perf_counter()
    profile = store.load(KEY)
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if profile is None:
        return "anew", seconds, peak
    same = all(torch.equal(getattr(profile, name), getattr(right, name)) for name in TENSORS)
    return (
        "right" if same and (profile.flow, profile.calls) == (right.flow, right.calls) else "wrong",
        seconds,
        peak,
    )
