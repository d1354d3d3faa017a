# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft Cluster: draft-refine by processes of their own, on this machine or on others."""

import asyncio
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ..common.messages import both, inform
from ..drafting.cluster.connection import LOCAL, check_address, knock
from ..drafting.cluster.entrance import Wish, devices_here
from ..drafting.cluster.pool import pool_of, pools
from ..drafting.cluster.session import SERVING
from ..drafting.devices import clustered
from ..drafting.errors import NoCluster
from . import drafting_inputs
from .notice import show_at_node

ALIASES = [
    "ray",
    "cluster",
    "distributed",
    "network",
    "lan",
    "multiple machines",
    "several computers",
    "multi gpu",
    "集群",
    "分布式",
    "多机",
]
"""What users search who have more machines than one."""


class DraftCluster(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DizzyDiffCluster",
            display_name="Draft Cluster",
            category="DizzyDiff/drafting",
            description="Where Draft-Refine evaluates: processes of their own, one a device, on this machine "
            "or on others, by Ray. In the place of Draft Devices.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model, with its LoRAs and patches: each worker makes its own by the same "
                    "graph.",
                ),
                io.String.Input(
                    "address",
                    default=LOCAL,
                    tooltip="local: processes of this machine. auto: the Ray cluster that this machine "
                    "belongs to. Or the address of its head, such as 192.168.1.10:6379",
                ),
                io.Int.Input(
                    "workers",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="How many workers, beside ComfyUI's own device. 0: one for each GPU, or for each "
                    "device named.",
                ),
                io.String.Input(
                    "devices",
                    default="auto",
                    tooltip="For local. auto: every GPU but ComfyUI's own, or the CPU where ComfyUI runs on "
                    "that. Or a list, one a worker, such as: cuda:1, cuda:2",
                ),
                drafting_inputs.predictions_per_round(
                    "Evaluated at the same time, at most. 0: one a worker, and one here."
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model, for the draft-refine samplers. Others sample it as before."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, address: str | None = LOCAL) -> bool | str:
        try:
            if address is not None:
                check_address(address)
        except NoCluster as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model: Any, address: str, workers: int, devices: str, predictions_per_round: int = 0
    ) -> io.NodeOutput:
        if SERVING.get() is not None:
            return io.NodeOutput(clustered(model, None, predictions_per_round))
        address = check_address(address)
        knock(address)  # a mistake must not end the workers there are
        here = devices_here(devices, workers) if address == LOCAL else ()
        pool = pool_of(Wish(address, workers, here))
        say = both(inform, show_at_node)
        members = pool.gather(say, comfy.model_management.throw_exception_if_processing_interrupted)
        if not members:
            raise NoCluster("No worker of the cluster is left; see what is said of each.")
        say(f"Draft Cluster: {', '.join(member.name for member in members)}.")
        return io.NodeOutput(clustered(model, pool, predictions_per_round))


def follow_free() -> None:
    """Workers unload their models where ComfyUI is asked to, by POST /free: the editor's "Unload Models"."""
    from server import PromptServer

    PromptServer.instance.app.on_response_prepare.append(_pass_on)


async def _pass_on(request: Any, response: Any) -> None:
    """As core reads the request, whose handler is through."""
    if request.path not in ("/free", "/api/free") or response.status != 200:
        return
    told = await request.json()
    caches = bool(told.get("free_memory", False))
    if caches or told.get("unload_models", False):
        for pool in list(pools().values()):
            await asyncio.to_thread(pool.free, caches)
