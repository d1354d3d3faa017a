# SPDX-License-Identifier: GPL-3.0-or-later
"""A state a worker: processes here or on other machines, which came to the same sampler by the same graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
from torch import Tensor

from ..cluster.place import place
from ..cluster.pool import Failed, Lost, Member
from ..cluster.wire import packed, unpacked
from ..devices import canonical
from ..errors import NoCluster, NoRay, Undraftable
from ..speculation import State
from .base import Backend, Request
from .compare import compute_dtype, disagreement, rtol
from .graph import POST_CFG

BEGIN_S = 1800.0
"""Seconds in which a worker must come to the sampler: it loads the models meanwhile."""
STALL_S = 60.0
"""Seconds without an answer after which a worker is left out, or STALLS times what the main device took."""
STALLS = 20.0
CFG1 = "disable_cfg1_optimization"
"""The option by which a sampler that reads uncond has it evaluated at CFG 1 too."""
MASKED = ("latent_image", "noise")
"""What a sampler's model keeps for pictures with a mask, beside the mask."""


@dataclass(frozen=True)
class Run:
    """name: of one execution of the node; visit: how often it sampled in it before."""

    name: str
    visit: int


class Cluster(Backend):
    """One prediction of the whole guider a worker; the first state on the main device.

    While the first state is evaluated here, every worker evaluates it too. One that predicts otherwise is
    left out before any of its answers counts; so is, at any time, one that is lost or fails.
    """

    def __init__(self, request: Request, width: int, members: list[Member], run: Run) -> None:
        super().__init__(request, width)
        self._pool, self._run, self._all = request.wish["cluster"], run, members
        self._others = list(members)
        self._main = str(canonical(request.guider.model_patcher.load_device))
        self._trial: dict[Member, Any] = {}
        self._longest = 0.0

    @classmethod
    def refusal(cls, request: Request) -> Undraftable | None:
        if request.wish.get("cluster") is None or request.shape is None or request.guider is None:
            return Undraftable("there is one device, which evaluates one state at a time")
        return None

    @classmethod
    def make(cls, request: Request) -> Cluster:
        """Has the workers begin. Raises :class:`Undraftable` where there is none, or they cannot follow."""
        assert request.shape is not None
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
        cluster = cls(request, request.states_a_round or 1 + len(members), members, Run(run, visit))
        if not visit:
            graph = here.graph(request.shape, run)
            for member in members:
                cluster._ask(member, "begin", graph, here.node)
        return cluster

    @property
    def places(self) -> int:  # type: ignore[override]
        return 1 + len(self._others)

    def __str__(self) -> str:
        return ", ".join((self._main, *(member.name for member in self._others)))

    def evaluate(self, states: list[State], arguments: dict[str, Any]) -> list[Tensor]:
        if not self._drafted:
            if not self._given_up:
                self._trial = self._submit(dict.fromkeys(self._others, states), arguments, first=True)
            self.evaluated_on = [self._main] * len(states)
            return super().evaluate(states, arguments)
        places = [None, *self._others]
        shares = {each: list(range(i, len(states), len(places))) for i, each in enumerate(places)}
        busy = self._submit(
            {each: [states[i] for i in share] for each, share in shares.items() if each and share}, arguments
        )
        evaluated_on = [self._main] * len(states)
        started, predictions = self.request.clock(), dict[int, Tensor]()
        for i in shares[None]:
            predictions[i] = super().evaluate([states[i]], arguments)[0]
        self._longest = max(self._longest, self.request.clock() - started)
        for member, asked in busy.items():
            share = shares[member]
            answers = self._answers(member, asked, max(STALL_S, STALLS * self._longest))
            if answers is not None:
                predictions.update(zip(share, answers, strict=True))
            for i in share:
                if answers is not None:
                    evaluated_on[i] = member.name
                else:
                    predictions[i] = super().evaluate([states[i]], arguments)[0]
        self.evaluated_on = evaluated_on
        return [predictions[i].to(states[0].x.device) for i in range(len(states))]

    def check(self, arguments: dict[str, Any]) -> None:
        """In every picture: the model and the conditioning there were made there."""
        assert self._last is not None
        _, prediction = self._last
        limit = rtol(compute_dtype(self.request.guider))
        for member, asked in self._trial.items():
            answers = self._answers(member, asked, BEGIN_S)
            if (
                answers is not None
                and not (off := disagreement(answers[0].to(prediction.device), prediction)) <= limit
            ):
                self._leave_out(
                    member,
                    f"{member.name} predicts otherwise than {self._main} does (off by {off:.1e} of a "
                    "prediction): a file, a pack or a driver differs there",
                )

    def close(self, result: Tensor | None) -> None:
        """Workers go on in the node with the result, or leave it."""
        if result is None:
            self._pool.give_up()
        for member in self._all:
            if result is None or member not in self._others:
                self._ask(member, "stop")
            else:
                self._ask(member, "finish", packed(result))

    def _ask(self, member: Member, what: str, *given: Any) -> Any:
        """None where nobody is there to be asked."""
        try:
            return member.ask(what, self._run.name, *given)
        except Lost:
            return None

    def _submit(
        self, shares: dict[Member, list[State]], arguments: dict[str, Any], *, first: bool = False
    ) -> dict[Member, Any]:
        """Have workers predict their states."""
        options = arguments["model_options"]
        hook = None
        if len(options.get(POST_CFG, [])) > self._graph_hooks:
            hook = {name: options[name] for name in (CFG1,) if name in options}
        masked = self._masked(arguments) if first else None
        sent: dict[int, Any] = {}
        for states in shares.values():
            for state in states:
                if id(state) not in sent:
                    sent[id(state)] = packed(state.x), float(state.sigmas[0])
        return {
            member: self._ask(
                member, "evaluate", self._run.visit, [sent[id(state)] for state in states], hook, masked
            )
            for member, states in shares.items()
        }

    def _masked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What decides beside the state where a mask holds the picture: workers have an empty latent."""
        if (mask := arguments.get("denoise_mask")) is None:
            return {}
        kept = {name: getattr(self.model, name, None) for name in MASKED}
        found = {**kept, "denoise_mask": mask}
        return {name: packed(value) for name, value in found.items() if isinstance(value, Tensor)}

    def _answers(self, member: Member, asked: Any, patience: float) -> list[Tensor] | None:
        """None where the worker is left out. Raises InterruptProcessingException."""
        try:
            if asked is None:
                raise Lost("it is gone")
            answers = member.answer(
                asked, patience, comfy.model_management.throw_exception_if_processing_interrupted
            )
            return [unpacked(each) for each in answers]
        except Lost as why:
            member.kill()
            self._pool.give_up()
            self._leave_out(member, f"the worker {member.name} was lost ({why})")
        except Failed as why:
            self._leave_out(member, f"the worker {member.name} failed ({why})")
        return None

    def _leave_out(self, member: Member, why: str) -> None:
        self.width = max(1, self.width * len(self._others) // (1 + len(self._others)))
        self._others.remove(member)
        self.request.warn(
            f"{why}. It is left out for the rest of this image, and {self._main} evaluates its states."
        )
