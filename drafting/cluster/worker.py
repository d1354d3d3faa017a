# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker: runs the graph of a picture up to its sampler, and answers the model calls that are sent."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import threading
from typing import Any

import comfy.model_management
import execution
import torch
from server import PromptServer

import nodes

from ..backends.base import Backend, Request
from ..backends.graph import POST_CFG
from .files import Guests, lacking
from .graph import STAND_IN, Graph
from .latent import Latent, latent_again
from .session import SERVING, NotThere, Session
from .version import version
from .wire import Sent, packed, unpacked

BEGIN_S = 60.0
"""Seconds that a question waits for its picture to begin."""


class LatentThatTravelled:
    """The LATENT of the main machine, in place of what it is made from there."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"run": ("STRING",)}}

    def make(self, run: str) -> tuple[dict[str, Any]]:
        session = SERVING.get()
        assert session is not None and session.run == run
        return (latent_again(dict(session.latent)),)


class Worker:
    """One picture at a time. Its models stay loaded, as long as ComfyUI's cache keeps them."""

    def __init__(self, threads: int) -> None:
        """threads: of PyTorch, on a CPU."""
        torch.set_num_threads(threads)
        nodes.NODE_CLASS_MAPPINGS[STAND_IN] = LatentThatTravelled
        caches = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        self._executor = execution.PromptExecutor(
            PromptServer.instance, cache_type=execution.CacheType.CLASSIC, cache_args=caches
        )
        self._changed = threading.Condition()
        self._beginning = threading.Lock()
        self._session: Session | None = None
        self._begun: set[str] = set()
        self._thread: threading.Thread | None = None
        self._masked: dict[str, Sent] = {}
        self._guests = Guests()
        self._idle = True
        self._freeing: bool | None = None

    def facts(self) -> dict[str, Any]:
        return {
            "host": platform.node(),
            "device": str(comfy.model_management.get_torch_device()),
            "pid": os.getpid(),
            "version": version(),
        }

    def lacks(self, digests: dict[str, str]) -> list[str]:
        """Which of these files, by the names that a graph has for them, must be sent."""
        return lacking(digests)

    def begin(self, run: str, graph: Graph, node: str, latent: Latent, files: dict[str, bytes]) -> None:
        """Run the graph up to ``node``, in place of whatever runs. files: that are not here, by name."""
        session = Session(run, latent)
        with self._beginning:
            with self._changed:
                before, self._session = self._session, session
                self._begun.add(run)
                self._changed.notify_all()
            if before is not None:
                before.stop()
            if self._thread is not None and self._thread.is_alive():
                comfy.model_management.interrupt_current_processing()
                self._thread.join()
            self._masked, self._idle = {}, False
            given = (session, graph, node, files)
            self._thread = threading.Thread(target=self._run, args=given, daemon=True)
            self._thread.start()

    def evaluate(
        self,
        run: str,
        visit: int,
        states: list[tuple[Sent, float]],
        hook: dict[str, Any] | None,
        masked: dict[str, Sent] | None,
    ) -> list[Sent]:
        """Predictions [P, ...] at states (x, sigma), made in the sampler's thread.

        hook: options of a sampler's own post-cfg hook, which reads uncond; then P is 2. masked: what is kept
        beside the state of a picture with a mask, latent_image, noise and denoise_mask, from now on; None: as
        before. Raises :class:`NotThere`.
        """
        session = self._of(run)

        def predict(model: Any, extra_args: dict[str, Any]) -> list[Sent]:
            self._masked = self._masked if masked is None else masked
            return self._predict(session, model, extra_args, states, hook)

        return session.ask(visit, predict)

    def finish(self, run: str, result: Sent) -> None:
        """The picture is made: the node goes on with it."""
        self._of(run).finish(unpacked(result, comfy.model_management.get_torch_device()))

    def stop(self, run: str) -> None:
        """The picture is given up."""
        self._of(run).stop()

    def free(self, caches: bool) -> None:
        """Unload all models, and forget what nodes gave (caches), as soon as no picture is drawn."""
        with self._changed:
            self._freeing = caches or bool(self._freeing)
            if self._idle:
                self._free()

    def _free(self) -> None:
        caches, self._freeing = self._freeing, None
        if caches is None:
            return
        comfy.model_management.unload_all_models()
        if caches:
            self._executor.reset()
        gc.collect()
        comfy.model_management.soft_empty_cache()

    def _of(self, run: str) -> Session:
        with self._changed:
            self._changed.wait_for(lambda: run in self._begun, BEGIN_S)
            if self._session is None or self._session.run != run:
                raise NotThere("another picture runs there")
            return self._session

    def _run(self, session: Session, graph: Graph, node: str, files: dict[str, bytes]) -> None:
        SERVING.set(session)
        why = ""
        try:
            graph = self._guests.take_in(graph, files)
            if not (why := missing(graph) or asyncio.run(invalid(session.run, graph, node))):
                self._executor.execute(graph, session.run, {}, [node])
                why = failure(self._executor.status_messages)
        except BaseException as error:  # of a thread that nobody joins: it is told to whoever asks next
            why = f"{type(error).__name__}: {error}"
        finally:
            self._guests.send_off()
            session.end(why)
            with self._changed:
                self._idle = True
                self._free()

    def _predict(
        self,
        session: Session,
        model: Any,
        extra_args: dict[str, Any],
        states: list[tuple[Sent, float]],
        hook: dict[str, Any] | None,
    ) -> list[Sent]:
        device = comfy.model_management.get_torch_device()
        arguments = {**extra_args, "model_options": dict(extra_args["model_options"])}
        for name, sent in self._masked.items():
            if name == "denoise_mask":
                arguments[name] = unpacked(sent, device)
            else:
                setattr(model, name, unpacked(sent, device))
        backend = Backend(Request(model, arguments["model_options"]), 1)
        if hook is not None:
            options = arguments["model_options"]
            options[POST_CFG] = [*options.get(POST_CFG, []), lambda report: report["denoised"]]
            options.update(hook)
        answers = []
        for sent, sigma in states:
            if session.stopped:
                raise NotThere("the picture was given up")
            x = unpacked(sent, device)
            prediction = backend.predict(model, x, x.new_full([x.shape[0]], sigma), arguments)
            answers.append(packed(prediction))
        return answers


def missing(graph: Graph) -> str:
    """Which nodes of the graph are not here; "" where all are."""
    kinds = {node["class_type"] for node in graph.values()}
    if lacking := sorted(kinds - nodes.NODE_CLASS_MAPPINGS.keys()):
        return f"these nodes are not installed there: {', '.join(lacking)}"
    return ""


async def invalid(run: str, graph: Graph, node: str) -> str:
    """What ComfyUI has against the graph here, a model file that is missing for one; "" where nothing."""
    found: dict[str, Any] = {}
    await execution.validate_inputs(run, graph, node, found)
    problems = [
        f"{graph[name]['class_type']}: {error['message']} ({error['details']})"
        for name, (_, errors, _) in found.items()
        for error in errors
    ]
    return "; ".join(dict.fromkeys(problems))


def failure(messages: list[tuple[str, dict[str, Any]]]) -> str:
    """What ComfyUI says of a node that failed."""
    for kind, told in messages:
        if kind == "execution_error":
            return (
                f"{told['node_type']} failed ({told['exception_type']}: {told['exception_message'].strip()})"
            )
    return ""
