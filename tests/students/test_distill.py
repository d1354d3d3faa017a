# SPDX-License-Identifier: GPL-3.0-or-later
"""What is distilled, in closed form; and a training that says the same in parts as in one go."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dizzydiff.common.steps import euler_step, per_row
from dizzydiff.students.distill import objective, plot
from dizzydiff.students.distill.distribution import TrainingDistribution
from dizzydiff.students.distill.errors import BadPlan, Diverged, OtherTraining
from dizzydiff.students.distill.plan import Plan, PlannedStage, stages_of
from dizzydiff.students.distill.stages import (
    Denoise,
    FrozenStudent,
    GuidanceStage,
    GuiderStage,
    ProgressiveStage,
    random_levels,
)
from dizzydiff.students.distill.training import Training
from dizzydiff.students.errors import BadSigmas
from dizzydiff.students.sampler import sample_student

SIZE = (3, 2, 2)
sigmas = st.floats(0.05, 50.0)


class Gaussians:
    """Every prompt is a Gaussian of variance 1 around its own mean, so D is known; the student is D with a
    shift linear in w.

    D(x, c) = (x + sigma^2 m_c) / (1 + sigma^2), D(x) around the mean of all: the guided D differs from D(x,
    c) by w sigma^2 (m_c - m) / (1 + sigma^2), which the student can say exactly.
    """

    def __init__(self, prompts: int = 2) -> None:
        self.means = torch.randn(prompts, *SIZE, generator=torch.Generator().manual_seed(1))
        self.parameters: Mapping[str, nn.Parameter] = {"shift": nn.Parameter(torch.zeros(prompts, *SIZE))}

    def _denoised(self, x: Tensor, sigma: Tensor, mean: Tensor) -> Tensor:
        sigma = per_row(sigma, x)
        return (x + sigma**2 * mean) / (1 + sigma**2)

    def teacher(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        return self._denoised(x, sigma, self.means[prompt]), self._denoised(x, sigma, self.means.mean(0))

    def student(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        shift = per_row(g - 1, x) * self.parameters["shift"][prompt]
        return self._denoised(x, sigma, self.means[prompt] + shift)


DISTRIBUTION = TrainingDistribution(2, SIZE, (1.0, 4.0), lambda t: 0.05 + 10 * t**3, flow=False)


def levels(n: int) -> Tensor:
    return torch.cat([torch.linspace(10.0, 0.0, n + 1)])


def training(plan: Plan) -> Training:
    return Training(Gaussians(), stages_of(plan, DISTRIBUTION, levels), plan)


def test_stage_one_finds_the_guided_teacher() -> None:
    plan = Plan(updates=400, scales=(1.0, 4.0), batch=16, rate=0.02)
    trained = training(plan)
    trained.run()
    gaussians: Gaussians = trained.student  # type: ignore[assignment]
    torch.testing.assert_close(
        gaussians.parameters["shift"].data, gaussians.means - gaussians.means.mean(0), rtol=0.02, atol=0.02
    )


class Guided(Gaussians):
    """A guider of two scales moves the mean by (g_1 - 1) A + (g_2 - 1) B; the student knows one row at a
    time of what it was asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moves = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(2))
        self.parameters = {"shift": nn.Parameter(torch.zeros(2, *SIZE))}
        self.visits: list[tuple[list[float], int, list[float]]] = []

    def visit(self, walk: Callable[[Denoise], None], sigmas: Tensor, prompt: int, g: Tensor) -> None:
        self.visits.append((sigmas.tolist(), prompt, g.tolist()))
        mean = self.means[prompt] + torch.einsum("i,i...->...", g.float() - 1, self.moves)
        walk(lambda x, sigma: self._denoised(x, sigma, mean))

    def student(self, x: Tensor, sigma: Tensor, prompt: Tensor, g: Tensor) -> Tensor:
        move = torch.einsum("bi,i...->b...", g.float() - 1, self.parameters["shift"])
        return self._denoised(x, sigma, self.means[prompt] + move)


def test_stage_one_finds_what_a_guider_does_with_two_scales() -> None:
    plan, guided = Plan(updates=400, scales=(1.0, 4.0), batch=16, rate=0.02), Guided()
    distribution = dataclasses.replace(DISTRIBUTION, signals=2)
    Training(guided, stages_of(plan, distribution, levels, guided.visit), plan).run()
    torch.testing.assert_close(guided.parameters["shift"].data, guided.moves, rtol=0.02, atol=0.02)


def test_a_guider_samples_each_trajectory_by_itself_over_the_whole_range() -> None:
    guided = Guided()
    stage = GuiderStage(dataclasses.replace(DISTRIBUTION, signals=2), guided.visit)
    states = stage.pool(guided, None, 4, torch.Generator().manual_seed(0)).states
    assert [len(sigmas) for sigmas, _, _ in guided.visits] == [17] * 4
    assert all(sigmas[0] > 9.9 and sigmas[-1] == 0.0 for sigmas, _, _ in guided.visits)
    for signal in (0, 1):
        parts = sorted(int((g[signal] - 1) / 3 * 4) for _, _, g in guided.visits)
        assert parts == [0, 1, 2, 3], "one scale in each quarter of the range"
    first = slice(0, 16)
    assert states.g[first].unique(dim=0).shape == (1, 2)
    for now, following in itertools.pairwise(range(16)):
        D, x = states.target[now : now + 1], states.x[now : now + 1]
        led = euler_step(x, D, per_row(states.sigma[now : now + 1], x), per_row(states.sigma[[following]], x))
        torch.testing.assert_close(led, states.x[[following]])


def test_a_guider_answers_pictures_at_their_own_noise_levels() -> None:
    guided = Guided()
    pictures = dataclasses.replace(DISTRIBUTION, signals=2, latents=torch.randn(3, *SIZE))
    states = GuiderStage(pictures, guided.visit).pool(guided, None, 2, torch.Generator()).states
    assert [sigmas for sigmas, _, _ in guided.visits] == [[sigma, 0.0] for sigma in states.sigma.tolist()]
    assert [prompt for _, prompt, _ in guided.visits] == states.prompt.tolist()


def test_rows_of_two_signals_are_weighed_by_the_stronger() -> None:
    assert objective.strongest(torch.tensor([[1.0, 5.0], [4.0, 2.0]])).tolist() == [4.0, 3.0]
    assert objective.strongest(torch.tensor([1.0, 5.0])).tolist() == [0.0, 4.0]


@given(sigmas, sigmas, st.integers(0, 2**31))
def test_the_one_step_target_leads_where_many_steps_led(sigma: float, below: float, seed: int) -> None:
    below, sigma = sorted((below, sigma + 0.05))
    generator = torch.Generator().manual_seed(seed)
    x, end = (
        torch.randn(2, *SIZE, generator=generator).double(),
        torch.randn(2, *SIZE, generator=generator).double(),
    )
    s, t = torch.full((2,), sigma + 0.05).double(), torch.full((2,), below).double()
    target = objective.one_step_target(x, s, end, t)
    torch.testing.assert_close(euler_step(x, target, per_row(s, x), per_row(t, x)), end)


def test_the_last_step_is_to_answer_with_the_picture_itself() -> None:
    x, end = torch.randn(2, *SIZE), torch.randn(2, *SIZE)
    torch.testing.assert_close(
        objective.one_step_target(x, torch.tensor([3.0, 9.0]), end, torch.zeros(2)), end
    )


@given(st.floats(0.0, 15.0))
def test_guidance_is_that_of_cfg(w: float) -> None:
    conditional, unconditional = torch.randn(1, *SIZE).double(), torch.randn(1, *SIZE).double()
    cfg = unconditional + (1 + w) * (conditional - unconditional)
    torch.testing.assert_close(objective.guided(conditional, unconditional, torch.tensor([w]).double()), cfg)


@pytest.mark.parametrize("flow", [False, True])
def test_the_loss_is_the_error_of_the_velocity(flow: bool) -> None:
    """v = (x / sqrt(1 + s^2) - sqrt(1 + s^2) D) / s for variance-preserving diffusion, (x - D) / sigma for
    flow.
    """
    x, a, b = (torch.randn(3, *SIZE, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    s = sigma.reshape(-1, 1, 1, 1)
    root = (1 + s**2).sqrt()

    def velocity(denoised: Tensor) -> Tensor:
        return (x - denoised) / s if flow else (x / root - root * denoised) / s

    expected = (velocity(a) - velocity(b)).square().mean()
    torch.testing.assert_close(objective.loss(a, b, sigma, torch.zeros(3), flow), expected)


def test_states_of_the_stage_lie_on_the_frozen_students_trajectory() -> None:
    """Where the steps of N = 2 begin, the targets lead from one state to the next."""
    gaussians = Gaussians()
    frozen = FrozenStudent(gaussians, {"shift": torch.zeros(2, *SIZE)})
    stage = ProgressiveStage(DISTRIBUTION, levels(8), 2)
    states = stage.pool(gaussians, frozen, 3, torch.Generator().manual_seed(0)).states
    assert states.sigma.tolist() == [10.0] * 3 + [5.0] * 3
    sigma, sigma_next = (per_row(each, states.x[:3]) for each in (states.sigma[:3], states.sigma[3:]))
    torch.testing.assert_close(euler_step(states.x[:3], states.target[:3], sigma, sigma_next), states.x[3:])


def test_a_frozen_student_answers_as_it_was_and_leaves_the_one_in_training_as_it_is() -> None:
    gaussians = Gaussians()
    x, one = torch.randn(2, *SIZE), torch.ones(2)
    call = (x, one, torch.arange(2), 3 * one)
    before = gaussians.student(*call).detach()
    frozen = FrozenStudent(gaussians, {"shift": gaussians.parameters["shift"].detach().clone()})
    gaussians.parameters["shift"].data += 1.0
    assert torch.equal(frozen(*call), before) and not frozen(*call).requires_grad
    assert not torch.equal(gaussians.student(*call), before)


def test_states_begin_with_pure_noise_and_cover_all_levels() -> None:
    fallen = random_levels(DISTRIBUTION, GuidanceStage.steps, torch.Generator().manual_seed(0))
    assert fallen[0] == DISTRIBUTION.level(1.0) and len(fallen) == 16
    assert (fallen[1:] < fallen[:-1]).all() and fallen[-1] < DISTRIBUTION.level(1 / 16)


def test_noised_pictures_are_those_of_the_forward_process() -> None:
    pictures = torch.full((4, *SIZE), 5.0)
    for flow, expected in ((False, 5.0), (True, 2.5)):
        distribution = TrainingDistribution(2, SIZE, (1.0, 4.0), DISTRIBUTION.level, flow, pictures)
        sigma = torch.full((4000,), 0.5)
        x, prompt = distribution.draw_noised_latents(4000, torch.Generator().manual_seed(0), sigma)
        assert abs(x.mean().item() - expected) < 0.02 and abs(x.std().item() - 0.5) < 0.02
        assert set(prompt.tolist()) == {0, 1}


@pytest.mark.parametrize("stop_after", [1, 7, 10, 14])
def test_a_training_in_parts_is_the_training_in_one_go(stop_after: int) -> None:
    class Stop(Exception):
        pass

    def stop(progress: object) -> None:
        if len(first.progress.losses) == stop_after:
            raise Stop

    plan = Plan(updates=10, scales=(1.0, 4.0), batch=4, steps=4, first_steps=8, step_updates=5)
    whole, first, second = training(plan), training(plan), training(plan)
    whole.run()
    with pytest.raises(Stop):
        first.run(stop)
    tensors, numbers = first.state()
    second.resume({key: value.clone() for key, value in tensors.items()}, numbers)
    second.run()
    assert second.progress.losses == whole.progress.losses
    assert torch.equal(second.student.parameters["shift"], whole.student.parameters["shift"])


def test_a_student_that_diverges_stops_where_it_was() -> None:
    trained = training(Plan(updates=10, scales=(1.0, 4.0)))
    kept: list[Tensor] = []

    def break_at_three(progress: object) -> None:
        if trained.progress.update == 3:
            kept.append(trained.student.parameters["shift"].detach().clone())
            trained.student.means.fill_(torch.inf)  # type: ignore[attr-defined]

    with pytest.raises(Diverged, match="update 4 of stage 'guidance'"):
        trained.run(break_at_three)
    assert torch.equal(trained.student.parameters["shift"], kept[0]) and trained.progress.update == 3


def test_a_state_of_another_student_is_refused() -> None:
    trained = training(Plan(updates=2))
    with pytest.raises(OtherTraining, match="other layers"):
        trained.resume({"shift": torch.zeros(9)}, {"stage": 0, "update": 0})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scales": (8.0, 1.0)}, "lower end first"),
        ({"scales": (-1.0, 1.0)}, "not below 0"),
        ({"updates": 0}, "at least 1"),
        ({"rate": 0.0}, "between 0 and 1"),
        ({"steps": 3}, "1, 2, 4, 8"),
        ({"steps": 16}, "1, 2, 4, 8"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(BadPlan, match=said):
        Plan(**settings)


def test_steps_are_halved_down_to_the_last() -> None:
    plan = Plan(steps=1, first_steps=8)
    stages = stages_of(plan, DISTRIBUTION, levels)
    assert [(planned.stage.name, planned.updates) for planned in stages] == [
        ("guidance", 2000),
        ("8 steps", 600),
        ("4 steps", 600),
        ("2 steps", 600),
        ("1 steps", 600),
    ]
    fine = [planned.stage.fine for planned in stages[1:]]  # type: ignore[attr-defined]
    assert [len(each) - 1 for each in fine] == [32, 8, 4, 2]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    planned = PlannedStage(GuidanceStage(DISTRIBUTION), 1000)
    assert (
        planned.rate_at(0, 1.0) < 0.05
        and planned.rate_at(300, 1.0) == 1.0
        and planned.rate_at(999, 1.0) < 0.01
    )


def test_the_plot_shows_a_falling_loss() -> None:
    image = plot.draw([1.0 / (i + 1) for i in range(100)], 200, [50])
    line = [
        (x, y)
        for x in range(image.width)
        for y in range(image.height)
        if image.getpixel((x, y)) == plot.LINE and x > 64 and y > 34
    ]
    left, right = min(line), max(line)
    assert left[1] < right[1] and right[0] < image.width * 0.6, (
        "it falls, and the second half of the updates is yet to come"
    )


def test_the_encoder_run_leads_to_noise_that_leads_back() -> None:
    """The deterministic sampler upwards, then downwards, on a Gaussian of mean 2, whose marginals are known
    at both ends.
    """

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = per_row(sigma, x)
        return (x + sigma**2 * 2.0) / (1 + sigma**2)

    pictures = 2.0 + torch.randn(64, *SIZE, generator=torch.Generator().manual_seed(0))
    down = torch.cat([torch.logspace(2, -3, 400), torch.tensor([1e-4])])
    noise = sample_student(
        model, pictures, down.flip(0), disable=True, eta=0.0, noise_sampler=torch.zeros_like
    )
    torch.testing.assert_close(noise.std() / 100.0, pictures.std(), rtol=0.05, atol=0.0)
    back = sample_student(model, noise, down, disable=True, eta=0.0, noise_sampler=torch.zeros_like)
    torch.testing.assert_close(back, pictures, rtol=0.05, atol=0.05)


def test_noise_is_not_added_on_the_way_up() -> None:
    with pytest.raises(BadSigmas, match="expected eta 0"):
        sample_student(
            lambda x, sigma: x,
            torch.zeros(1, *SIZE),
            torch.tensor([0.1, 1.0]),
            eta=1.0,
            noise_sampler=torch.zeros_like,
        )
