# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers, here or on other machines, which came to the same sampler by the same graph."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..cluster.files import digest, files_in
from ..cluster.latent import latent_of
from ..cluster.place import place
from ..cluster.pool import Failed, Lost, Member
from ..cluster.wire import Sent, packed, unpacked
from ..devices import canonical
from ..errors import NoCluster, NoRay, Undraftable
from ..speculation import State
from .allotted import Allotted, Came
from .base import Request
from .graph import POST_CFG

BEGIN_S = 1800.0
"""Seconds in which a worker must come to the sampler: it loads the models meanwhile."""
STALL_S = 60.0
"""Seconds without an answer after which a worker is left out, or STALLS times what the main device took for
its first call.
"""
STALLS = 20.0
CFG1 = "disable_cfg1_optimization"
"""The option by which a sampler that reads uncond has it evaluated at CFG 1 too."""
MASKED = ("latent_image", "noise")
"""What a sampler's model keeps for pictures with a mask, beside the mask."""
Place = torch.device | Member


@dataclass(frozen=True)
class Run:
    """name: of one execution of the node; visit: how often it sampled in it before."""

    name: str
    visit: int


class Cluster(Allotted[Place]):
    """The main device, and workers.

    While the main device evaluates the first state, every worker evaluates it too, in every picture: its
    model and conditioning were made there. A worker that is lost or fails is left out at any time.
    """

    def __init__(self, request: Request, members: list[Member], run: Run) -> None:
        main = canonical(request.guider.model_patcher.load_device)
        super().__init__(request, request.states_a_round, [main, *members])
        self._pool, self._run, self._members = request.wish["cluster"], run, members
        self._trial: dict[Place, Any] = {}
        self._patience, self._stall_s = BEGIN_S, STALL_S
        self._thread = ThreadPoolExecutor(1)
        self._packed: tuple[State, Sent] | None = None

    @classmethod
    def refusal(cls, request: Request) -> Undraftable | None:
        if request.wish.get("cluster") is None or not request.shapes or request.guider is None:
            return Undraftable("there is one device, which evaluates one state at a time")
        return None

    @classmethod
    def make(cls, request: Request) -> Cluster:
        """Has the workers begin. Raises :class:`Undraftable` where there is none, or they cannot follow."""
        pool, here = request.wish["cluster"], place()
        try:
            members = pool.gather(
                request.warn, comfy.model_management.throw_exception_if_processing_interrupted
            )
        except (NoRay, NoCluster) as gone:
            raise Undraftable(f"the cluster is gone ({gone})") from gone
        if not members:
            raise Undraftable("no worker of the cluster is left")
        run, visit = pool.visit(here.context)
        cluster = cls(request, members, Run(run, visit))
        if not visit:
            graph = here.graph(run)
            latent, files = latent_of(request.model, request.shapes, request.mask), files_in(graph)
            sums = {name: digest(path) for name, path in files.items()}
            for member in members:
                if (sent := cluster._lacking(member, files, sums)) is not None:
                    cluster._ask(member, "begin", graph, here.node, latent, sent)
        return cluster

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        if self._drafted or self._given_up:
            return super().evaluate(states, arguments)
        started = self.request.clock()
        self._trial = super()._again(states[0], arguments)
        predictions = super().evaluate(states, arguments)
        self._stall_s = max(STALL_S, STALLS * (self.request.clock() - started))
        return predictions

    def _again(self, state: State, arguments: dict[str, Any]) -> dict[Place, Any]:
        """Begun together with the main device."""
        return {each: answer for each, answer in self._trial.items() if each in self._places}

    def _compare(self, state: State, prediction: Tensor, arguments: dict[str, Any]) -> None:
        super()._compare(state, prediction, arguments)
        self._patience = self._stall_s

    def close(self, result: Tensor | None) -> None:
        """Workers go on in the node with the result, or leave it."""
        self._thread.shutdown()
        if result is None:
            self._pool.give_up()
        for member in self._members:
            if result is None or member not in self._places:
                self._ask(member, "stop")
            else:
                self._ask(member, "finish", packed(result))

    def _ask(self, member: Member, what: str, *given: Any) -> Any:
        """None where nobody is there to be asked."""
        try:
            return member.ask(what, self._run.name, *given)
        except Lost:
            return None

    def _lacking(
        self, member: Member, files: Mapping[str, Path], sums: Mapping[str, str]
    ) -> dict[str, bytes] | None:
        """What a worker lacks of the files. None where it is left out."""
        if not files:
            return {}
        look = comfy.model_management.throw_exception_if_processing_interrupted
        try:
            names = member.answer(member.ask("lacks", dict(sums)), STALL_S, look)
        except (Lost, Failed) as why:
            self._fail(member, why)
            return None
        return {name: files[name].read_bytes() for name in names}

    def _start(self, place: Place, states: list[State], arguments: dict[str, Any]) -> Any:
        if not isinstance(place, Member):
            return self._thread.submit(self._here, states, arguments)
        options = arguments["model_options"]
        hook = None
        if len(options.get(POST_CFG, [])) > self._graph_hooks:
            hook = {name: options[name] for name in (CFG1,) if name in options}
        masked = None if self._drafted else self._masked(arguments)
        sent = [(self._sent(state), float(state.sigmas[0])) for state in states]
        return self._ask(place, "evaluate", self._run.visit, sent, hook, masked)

    def _here(self, states: list[State], arguments: dict[str, Any]) -> Came:
        with torch.inference_mode():
            try:
                return [self.predict(self.model, each.x, each.sigmas, arguments) for each in states], None
            except BaseException as error:  # told by whoever waits for it
                return None, error

    def _sent(self, state: State) -> Sent:
        """Packed once for all workers that get the same one."""
        if self._packed is None or self._packed[0] is not state:
            self._packed = state, packed(state.x)
        return self._packed[1]

    def _masked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What decides beside the state where a mask holds the picture, bit for bit."""
        if (mask := arguments.get("denoise_mask")) is None:
            return {}
        kept = {name: getattr(self.model, name, None) for name in MASKED}
        found = {**kept, "denoise_mask": mask}
        return {name: packed(value) for name, value in found.items() if isinstance(value, Tensor)}

    def _wait(self, place: Place, answer: Any) -> Came:
        if not isinstance(place, Member):
            return answer.result()
        try:
            if answer is None:
                raise Lost("it is gone")
            look = comfy.model_management.throw_exception_if_processing_interrupted
            answers = place.answer(answer, self._patience, look)
        except (Lost, Failed) as why:
            return None, why
        return [unpacked(each, self._device) for each in answers], None

    def _time(self, state: State, arguments: dict[str, Any]) -> dict[Place, tuple[float | None, Any]]:
        """The way to a worker and back included."""
        self._sent(state)
        with ThreadPoolExecutor(len(self._places)) as threads:
            asked = {each: threads.submit(self._seconds, each, state, arguments) for each in self._places}
            return {each: answer.result() for each, answer in asked.items()}

    def _seconds(
        self, place: Place, state: State, arguments: dict[str, Any]
    ) -> tuple[float | None, BaseException | None]:
        started = self.request.clock()
        if place == self._main:
            result, error = self._here([state], arguments)
        else:
            result, error = self._wait(place, self._start(place, [state], arguments))
        if result is None:
            return None, error
        result[0].flatten()[0].item()
        return self.request.clock() - started, None

    def _fail(self, place: Place, error: BaseException | None) -> None:
        if isinstance(place, Member) and isinstance(error, Lost):
            place.kill()
            self._pool.give_up()
            self._leave_out(place, f"the worker {place} was lost ({error})")
        elif isinstance(error, Failed):
            self._leave_out(place, f"the worker {place} failed ({error})")
        else:
            super()._fail(place, error)
