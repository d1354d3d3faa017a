# SPDX-License-Identifier: GPL-3.0-or-later
"""Random damage to safetensors and JSON files, as broken downloads, careless edits and bad intentions do
it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

HUGE = 10**6
GARBAGE: tuple[Any, ...] = (
    *(None, True, "", "x" * 1000, 0, 1, -1, 3, 0.5, HUGE, 10**30, float("nan"), float("inf"), 1e308),
    *([], {}, [1, 2], [None], [HUGE] * 3, [[8, 8], [8, 8]], {"a": 1}, [float("nan")] * 4, "float32", ["x"]),
)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "X9")

Change = Callable[[random.Random, Path], str]
"""Damages a file and says how."""


def bytes_changed(rng: random.Random, path: Path) -> str:
    """Anywhere: cut, flipped, zeroed, doubled, or put in another order."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    # The header comes first and is small: without this, hardly any damage would meet it.
    at = rng.randrange(min(len(data), 4096)) if rng.random() < 0.5 else at
    kind = rng.choice(("cut", "flipped", "zeroed", "doubled", "moved", "emptied"))
    if kind == "cut":
        del data[at:]
    elif kind == "flipped":
        for _ in range(rng.randint(1, 8)):
            data[min(at + rng.randrange(64), len(data) - 1)] ^= 1 << rng.randrange(8)
    elif kind == "zeroed":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "doubled":
        data[at:at] = data[at : at + 64]
    elif kind == "moved":
        data = data[at:] + data[:at]
    else:
        data.clear()
    path.write_bytes(bytes(data))
    return f"bytes {kind} at {at}"


def header_changed(rng: random.Random, path: Path) -> str:
    """One thing that a safetensors file says of a tensor, or in its metadata."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    kind = rng.choice(("dtype", "shape", "offsets", "renamed", "dropped", "swapped", "metadata", "added"))
    entry = header[name]
    if kind == "dtype":
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == "shape":
        entry["shape"] = rng.choice((entry["shape"][::-1], [], [HUGE, HUGE], [0], [-1], [1, *entry["shape"]]))
    elif kind == "offsets":
        entry["data_offsets"] = [rng.randrange(len(body) + 1), rng.choice((0, len(body), 2**40, -5))]
    elif kind == "renamed":
        header[rng.choice((name + "x", "x." + name, name.replace("weight", "bias"), "é" * 40))] = header.pop(
            name
        )
    elif kind == "dropped":
        del header[name]
    elif kind == "swapped":
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    elif kind == "added":
        header[rng.choice(("v_pred", "guidance_in.in_layer.weight", "cfg_embedder.mlp.0.weight", "x"))] = (
            entry
        )
    else:
        metadata = header.setdefault("__metadata__", {"format": "pt"})
        key = rng.choice([*metadata, "guidance_weight", "guidance_scale_range", "prediction_type", "format"])
        metadata[key] = rng.choice([json.dumps(rng.choice(GARBAGE)), "{", "[" * 5000, "9" * 5000])
    write_header(path, header, body)
    return f"header: {kind} of {name}"


def write_header(path: Path, header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def values_changed(rng: random.Random, path: Path) -> str:
    """A tensor's numbers: NaN, infinity, another type, another shape."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    name = rng.choice(list(tensors))
    kind = rng.choice(("nan", "inf", "integers", "transposed", "halved", "repeated", "empty", "scalar"))
    value = tensors[name].clone()
    if kind in ("nan", "inf"):
        value.view(-1)[rng.randrange(value.numel())] = float(kind)
    elif kind == "integers":
        value = value.to(torch.int8)
    elif kind == "transposed":
        value = value.transpose(0, -1) if value.ndim else value
    elif kind == "halved":
        value = value[: max(1, len(value) // 2)] if value.ndim else value
    elif kind == "repeated":
        value = value.repeat(2, *[1] * (value.ndim - 1)) if value.ndim else value
    elif kind == "empty":
        value = value.flatten()[:0]
    else:
        value = value.flatten()[0]
    tensors[name] = value.contiguous()
    save_file(tensors, path, metadata)
    return f"{name} {kind}"


def setting_changed(rng: random.Random, path: Path) -> str:
    """One setting of a JSON config."""
    config = json.loads(path.read_text(encoding="utf-8"))
    key = rng.choice(list(config))
    if rng.random() < 0.15:
        del config[key]
        path.write_text(json.dumps(config), encoding="utf-8")
        return f"{key} dropped"
    value = rng.choice(GARBAGE)
    if isinstance(config[key], list) and config[key] and rng.random() < 0.5:
        value = (
            [*config[key][:-1], value] if rng.random() < 0.5 else config[key] * rng.choice((2, HUGE // 10))
        )
    config[key] = value
    path.write_text(json.dumps(config), encoding="utf-8")
    return f"{key} = {str(value)[:60]}"


def text_changed(rng: random.Random, path: Path) -> str:
    """A config that is no JSON object of sensible size."""
    texts: dict[str, bytes] = {
        "nested": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "digits": b'{"sample_size": ' + b"9" * 5000 + b"}",
        "latin": b'{"_class_name": "\xe9"}',
        "list": b"[1, 2]",
        "empty": b"",
        "null": b"null",
        "unfinished": path.read_bytes()[: rng.randrange(1, path.stat().st_size)],
    }
    kind = rng.choice(list(texts))
    path.write_bytes(texts[kind])
    return f"text {kind}"


OF_WEIGHTS: tuple[Change, ...] = (
    bytes_changed,
    bytes_changed,
    header_changed,
    header_changed,
    values_changed,
)
OF_CONFIGS: tuple[Change, ...] = (
    setting_changed,
    setting_changed,
    setting_changed,
    text_changed,
    bytes_changed,
)
