# SPDX-License-Identifier: GPL-3.0-or-later
"""A pack for the tests: what can go wrong in a worker, at a model call that is counted, not timed; and
devices that are equal, however busy the machine is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import folder_paths
import torch
from comfy.ldm.lightricks.av_model import LTXAVModel
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import CallbacksMP
from safetensors.torch import save_file

import nodes

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


def run(file: Path, calls: int) -> float:
    """The command in the file, by whoever removes it, in the middle of a picture."""
    if calls >= 3:
        try:
            command = file.read_text(encoding="utf-8").split()
            file.unlink()
        except FileNotFoundError:
            return 1.0
        subprocess.run(command, check=True)
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


ACTS = {"kill": kill, "run": run, "hang": hang, "fail": fail, "otherwise": otherwise}


class EqualDevices:
    """The model. From now on no time passes in this process, so that all devices are of the same speed."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def give(self, model: Any) -> tuple[Any]:
        node = nodes.NODE_CLASS_MAPPINGS["DizzyDiffDraftRefine"]
        sampler = sys.modules[node.__module__].DraftRefine
        sampler.__init__.__kwdefaults__["clock"] = lambda: 0.0
        return (model,)


class TellOfUnloading:
    """The model; whoever unloads it writes the number of its process into a file."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "file": ("STRING",)}}

    def patch(self, model: Any, file: str) -> tuple[Any]:
        model = model.clone()

        def tell(*_: Any) -> None:
            with Path(file).open("a", encoding="utf-8") as lines:
                lines.write(f"{os.getpid()}\n")

        model.add_callback(CallbacksMP.ON_DETACH, tell)
        return (model,)


class VideoWithSound:
    """A small network of LTX's kind, a prompt for it, and a latent of two parts whose first frame is kept."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "LATENT")
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def give(self) -> tuple[Any, Any, Any]:
        sizes = dict.fromkeys(("attention_head_dim", "audio_attention_head_dim"), 8)
        sizes |= dict.fromkeys(("cross_attention_dim", "audio_cross_attention_dim", "caption_channels"), 16)
        sizes |= dict.fromkeys(("num_attention_heads", "audio_num_attention_heads"), 2)
        sizes |= {"connector_attention_head_dim": 8, "connector_num_attention_heads": 2}
        sizes |= dict.fromkeys(("num_layers", "connector_num_layers"), 1)
        network = LTXAVModel(**sizes, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
        weights = torch.Generator().manual_seed(0)
        state = {
            name: 0.03 * torch.randn(each.shape, generator=weights)
            for name, each in network.state_dict().items()
        }
        file = Path(folder_paths.get_temp_directory()) / f"video_with_sound_{os.getpid()}.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_file(state, file, {"config": json.dumps({"transformer": sizes})})
        model = comfy.sd.load_diffusion_model(str(file))
        noise = torch.Generator().manual_seed(1)
        text = torch.randn(1, 6, 32, generator=noise)
        video, sound = torch.randn(1, 128, 2, 2, 2, generator=noise), torch.zeros(1, 8, 4, 16)
        kept = torch.ones(1, 1, 2, 2, 2)
        kept[:, :, 0] = 0.0
        masks = NestedTensor([kept, torch.ones(1, 8, 4, 16)])
        return model, [[text, {}]], {"samples": NestedTensor([video, sound]), "noise_mask": masks}


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
    "EqualDevices": EqualDevices,
    "TellOfUnloading": TellOfUnloading,
    "VideoWithSound": VideoWithSound,
}
if "ray" in sys.modules:  # a worker: as on another machine, the images of this one are not there
    folder_paths.set_input_directory(tempfile.mkdtemp(prefix="dizzydiff-no-images-"))
else:
    NODE_CLASS_MAPPINGS["OnlyInstalledHere"] = OnlyInstalledHere
