# SPDX-License-Identifier: GPL-3.0-or-later
"""A pack for the tests: what can go wrong in a worker, at a model call that is counted, not timed; and
devices that are equal, however busy the machine is.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

CALLS: dict[str, int] = {}
"""Model calls of this process, by the file that arms the fault."""


class FaultInWorkers:
    """The model, with a fault in every process but one; armed while a file exists."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",), "fault": ("STRING",), "armed": ("STRING",), "main": ("INT",),
            }
        }  # fmt: skip

    def patch(self, model: Any, fault: str, armed: str, main: int) -> tuple[Any]:
        model = model.clone()
        file, act = Path(armed), ACTS[fault]

        def wrapper(apply_model: Any, arguments: dict[str, Any]) -> Any:
            D = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
            if os.getpid() == main or not file.exists():
                return D
            CALLS[armed] = CALLS.get(armed, 0) + 1
            return D * act(file, CALLS[armed])

        model.set_model_unet_function_wrapper(wrapper)
        return (model,)


def kill(file: Path, calls: int) -> float:
    """One of the workers, whoever removes the file, in the middle of a picture."""
    if calls >= 3:
        try:
            file.unlink()
        except FileNotFoundError:
            return 1.0
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def hang(file: Path, calls: int) -> float:
    """Until the file is gone; another one says so."""
    if calls >= 3:
        file.with_suffix(".hangs").touch()
        while file.exists():
            time.sleep(0.01)
    return 1.0


def fail(file: Path, calls: int) -> float:
    if calls >= 3:
        raise RuntimeError("out of luck")
    return 1.0


def otherwise(file: Path, calls: int) -> float:
    return 1.02


ACTS = {"kill": kill, "hang": hang, "fail": fail, "otherwise": otherwise}


class OnEqualDevices:
    """Draft-Refine where no time passes, so that all devices are of the same speed."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sampler": ("SAMPLER",), "tolerance": ("FLOAT",)}}

    def give(self, sampler: Any, tolerance: float) -> tuple[Any]:
        import nodes

        made = nodes.NODE_CLASS_MAPPINGS["DizzyDiffDraftRefine"].execute(
            sampler, "verified", tolerance=tolerance
        )
        (drafted,) = made.result
        drafted._clock = lambda: 0.0
        return (drafted,)


class OnlyHere:
    """The model, where a file exists that only one process knows of."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "file": ("STRING",), "main": ("INT",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str, main: int) -> bool | str:
        return True if os.getpid() == main else f"{file} is not there"

    def give(self, model: Any, file: str, main: int) -> tuple[Any]:
        return (model,)


class OnlyInstalledHere(OnlyHere):
    @classmethod
    def VALIDATE_INPUTS(cls) -> bool | str:
        return True


NODE_CLASS_MAPPINGS = {
    "FaultInWorkers": FaultInWorkers,
    "OnlyHere": OnlyHere,
    "OnEqualDevices": OnEqualDevices,
}
if "ray" not in sys.modules:
    NODE_CLASS_MAPPINGS["OnlyInstalledHere"] = OnlyInstalledHere
