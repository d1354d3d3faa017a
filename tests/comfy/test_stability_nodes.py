# SPDX-License-Identifier: GPL-3.0-or-later
"""Stability grids of a real MODEL: measured once, kept, interrupted, and done without where it cannot be
measured.
"""

from __future__ import annotations

import datetime
import functools
import re
import shutil
from pathlib import Path

import comfy.model_management
import comfy.samplers
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3

from dizzydiff.drafting import backends
from dizzydiff.drafting.backends.replicas import Replicas
from dizzydiff.drafting.devices import spread
from dizzydiff.nodes.stability import StabilityGrid, StabilityProfile, StabilitySampler
from dizzydiff.stability import grids, scheduler
from dizzydiff.stability import measured as measuring
from dizzydiff.stability import subject as subjects
from dizzydiff.stability.errors import BadBlend, BadEffort, CannotMeasure
from dizzydiff.stability.identity import identity
from dizzydiff.stability.measured import key_of, measured_once
from dizzydiff.stability.profile import QUICK, THOROUGH, Effort
from dizzydiff.stability.solvers import EULER, SOLVERS, Solver
from dizzydiff.stability.store import Store
from dizzydiff.students.loader import Source, load_unet
from nodes import common_ksampler

from .networks import save_pipeline

CONTEXT = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(3))
POSITIVE, NEGATIVE = [[CONTEXT, {}]], [[CONTEXT * 0.5, {}]]
LATENT = {"samples": torch.zeros(2, 4, 8, 8)}
LAYER = "unet.time_embedding.linear_1"
LORA = {f"{LAYER}.lora_A.weight": torch.ones(2, 64), f"{LAYER}.lora_B.weight": torch.ones(256, 2)}
SMALL = Effort(levels=8, probes=3, directions=1)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("stability"))


@pytest.fixture
def model(pipeline: Path):
    return load_unet(Source(pipeline / "teacher", "tiny"))


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return tmp_path / "dizzydiff" / "stability"


def subject(model, **changes) -> subjects.Subject:
    return subjects.Subject(
        **{
            "model": model,
            "positive": POSITIVE,
            "negative": NEGATIVE,
            "cfg": 3.0,
            "latent": LATENT,
            **changes,
        }
    )


def profile(model, cfg: float = 3.0, probes: int = SMALL.probes, seed: int = 0):
    """STABILITY_PROFILE and plot."""
    return measured_model(model, cfg, probes, seed)[:2]


def measured_model(model, cfg: float = 3.0, probes: int = SMALL.probes, seed: int = 0):
    return StabilityProfile.execute(model, POSITIVE, NEGATIVE, cfg, LATENT, SMALL.levels, probes, seed).result


@pytest.fixture
def schedulers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the scheduler says. ComfyUI's lists are as they were afterwards."""
    monkeypatch.setattr(comfy.samplers, "SCHEDULER_HANDLERS", dict(comfy.samplers.SCHEDULER_HANDLERS))
    names = list(comfy.samplers.SCHEDULER_NAMES)
    monkeypatch.setattr(comfy.samplers, "SCHEDULER_NAMES", names)
    monkeypatch.setattr(comfy.samplers.KSampler, "SCHEDULERS", names)
    said: list[str] = []
    for _ in range(2):  # ComfyUI may load a pack again
        scheduler.register(said.append)
    assert comfy.samplers.SCHEDULER_NAMES.count("dizzydiff") == 1
    return said


def test_any_sampler_takes_the_sigmas_that_were_measured_of_its_model(model, schedulers: list[str]) -> None:
    measured, _, carrying = measured_model(model)

    def sigmas_of(model, steps: int, denoise: float = 1.0) -> torch.Tensor:
        place = model.load_device
        return comfy.samplers.KSampler(model, steps, place, "euler", "dizzydiff", denoise).sigmas

    expected = StabilityGrid.execute(measured, 6, 1.0, "dpmpp_2m").result[0]
    torch.testing.assert_close(sigmas_of(carrying, 6), expected)
    patched, _ = comfy.sd.load_lora_for_models(carrying, None, LORA, 0.5, 0.0)
    torch.testing.assert_close(sigmas_of(patched, 6), expected)
    assert len(sigmas_of(carrying, 4, 0.5)) == 5 and not schedulers
    sampled = common_ksampler(carrying, 5, 6, 3.0, "euler", "dizzydiff", POSITIVE, NEGATIVE, LATENT)
    assert sampled[0]["samples"].isfinite().all()

    simple = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 6)
    torch.testing.assert_close(sigmas_of(model, 6), simple)
    assert len(schedulers) == 1 and "Nothing was measured" in schedulers[0]
    other = ModelSamplingSD3().patch(carrying, 3.0)[0]
    assert len(sigmas_of(other, 6)) == 7 and len(schedulers) == 2, "other noise levels were not measured"


def test_the_pack_s_scheduler_is_not_one_of_those_it_is_compared_with(model, schedulers: list[str]) -> None:
    grids = measuring.scheduled_grids(model.get_model_object("model_sampling"), 6)
    assert "simple" in grids and "dizzydiff" not in grids and not schedulers


def test_graph_gives_sigmas_and_a_plot(model) -> None:
    measured, plot = profile(model)
    assert plot.shape[0] == 1
    assert plot.shape[2:] == (640, 3)
    assert 0 < plot.std() < 1
    for steps, denoise in ((6, 1.0), (1, 1.0), (4, 0.5)):
        sigmas = StabilityGrid.execute(measured, steps, denoise, "euler").result[0]
        assert sigmas.dtype == torch.float32
        assert len(sigmas) == steps + 1
        assert (sigmas.diff() < 0).all()
        assert sigmas[-1] == 0
    assert len(StabilityGrid.execute(measured, 6, 0.0, "euler").result[0]) == 0
    simple = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 6)
    torch.testing.assert_close(StabilityGrid.execute(measured, 6, 1.0, "euler", 1.0).result[0], simple)


def test_probes_are_spread_over_the_devices_and_measure_the_same(
    model, monkeypatch: pytest.MonkeyPatch, user_folder: Path
) -> None:
    """Draft Devices before Measure Stability: both devices answer, two probes each at a time, and the profile
    is that of one.
    """
    shares: list[tuple[str, int]] = []
    work = Replicas._share

    def counted(self: Replicas, place: torch.device, states: list, arguments: dict) -> list:
        shares.append((str(place), sum(len(state.x) for state in states)))
        return work(self, place, states, arguments)

    monkeypatch.setattr(Replicas, "_share", counted)
    monkeypatch.setattr(backends, "Request", functools.partial(backends.Request, clock=lambda: 0.0))
    alone, _ = profile(model, probes=4)
    assert not shares
    shutil.rmtree(user_folder)
    together, _ = profile(spread(model, "cpu, cpu:1", 0), probes=4, seed=0)
    assert shares.pop(0) == ("cpu:1", 1), "asked once, whether it predicts as the main device does"
    assert sorted(shares[:2]) == [("cpu", 1), ("cpu:1", 1)], "and how fast each is"
    assert set(shares[2:]) == {("cpu:1", 2)}
    assert len(shares[2:]) == SMALL.calls // SMALL.probes
    assert together.linearized is not None and alone.linearized is not None
    torch.testing.assert_close(together.linearized.denoised, alone.linearized.denoised, rtol=1e-3, atol=1e-3)


def test_efforts_cost_what_they_say(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in the network itself, at CFG 1."""
    assert QUICK.calls <= 100
    assert THOROUGH.calls < 500
    network, rows, seen = model.model.diffusion_model, [], []
    forward = network.forward
    monkeypatch.setattr(
        network, "forward", lambda x, *args, **kwargs: rows.append(len(x)) or forward(x, *args, **kwargs)
    )
    measured = subjects.measure_model(
        subject(model, cfg=1.0), SMALL, lambda made, of: seen.append((made, of))
    )
    assert sum(rows) == measured.calls == SMALL.calls + subjects.CHECK_CALLS
    made = [done for done, _ in seen]
    assert made == sorted(set(made))
    assert made[-1] == SMALL.calls
    assert {of for _, of in seen} == {SMALL.calls}


def test_rows_of_the_latent_change_what_is_evaluated_at_once_and_nothing_else(model) -> None:
    one, two = (
        subjects.measure_model(
            subject(model, latent={"samples": torch.zeros(n, 4, 8, 8)}), SMALL, lambda made, of: None
        )
        for n in (1, 2)
    )
    torch.testing.assert_close(one.responses, two.responses, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(one.states.norm(dim=-1), two.states.norm(dim=-1), rtol=1e-4, atol=1e-4)


@pytest.fixture
def rows_that_fit(monkeypatch: pytest.MonkeyPatch):
    """Memory for so many rows at once; more run out of it."""

    def limit(rows: int, error: Exception) -> None:
        whole = subjects._measure_batch

        def measure_batch(subject: subjects.Subject, noise: torch.Tensor, *rest) -> object:
            if len(noise) > rows:
                raise error
            return whole(subject, noise, *rest)

        monkeypatch.setattr(subjects, "_measure_batch", measure_batch)

    return limit


LACKS = [torch.OutOfMemoryError("out of memory"), RuntimeError("MPS backend out of memory"), MemoryError()]


@pytest.mark.parametrize("error", LACKS, ids=repr)
def test_probes_are_measured_one_by_one_where_memory_is_short(model, rows_that_fit, error: Exception) -> None:
    expected = subjects.measure_model(subject(model), SMALL, lambda made, of: None)
    rows_that_fit(1, error)
    measured = subjects.measure_model(subject(model), SMALL, lambda made, of: None)
    assert measured.calls == expected.calls
    torch.testing.assert_close(
        measured.states.norm(dim=-1), expected.states.norm(dim=-1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("error", LACKS, ids=repr)
def test_lack_of_memory_for_one_row_is_left_to_comfyui(
    model, rows_that_fit, user_folder: Path, error: Exception
) -> None:
    rows_that_fit(0, error)
    with pytest.raises(type(error)):
        profile(model)
    assert not user_folder.exists()


def test_flow_and_v_models_are_measured_between_their_own_ends(model) -> None:
    for patched in (
        ModelSamplingSD3().patch(model, 3.0)[0],
        ModelSamplingDiscrete().patch(model, "v_prediction", True)[0],
    ):
        measured, _ = profile(patched)
        sigmas = StabilityGrid.execute(measured, 5, 1.0, "dpmpp_2m").result[0]
        assert measured.origin.startswith("Measured")
        assert float(sigmas[0]) == pytest.approx(float(patched.get_model_object("model_sampling").sigma_max))
        assert (sigmas.diff() < 0).all()


def test_model_is_measured_once(
    model, pipeline: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second load of the same files finds the profile; another CFG, seed or size does not, nor does a
    LoRA.
    """
    first, _ = profile(model)
    assert len(list(user_folder.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_model", lambda *args: pytest.fail("measured again"))
        again, _ = profile(load_unet(Source(pipeline / "teacher", "tiny")))
    torch.testing.assert_close(again.sigmas(6, 1.0, EULER), first.sigmas(6, 1.0, EULER))
    (calls,) = re.findall(r"^Measured now by (\d+) model calls, and kept\.$", first.origin)
    assert again.origin == f"Measured on {datetime.date.today()} by {calls} model calls, and read."
    patched, _ = comfy.sd.load_lora_for_models(model, None, LORA, 0.5, 0.0)
    keys = {
        key_of(each, SMALL)
        for each in (
            subject(model),
            subject(model, cfg=5.0),
            subject(model, seed=1),
            subject(patched),
            subject(model, latent={"samples": torch.zeros(1, 4, 16, 16)}),
            subject(ModelSamplingSD3().patch(model, 3.0)[0]),
            *(
                subject(ModelSamplingDiscrete().patch(model, kind, False)[0])
                for kind in ("eps", "v_prediction")
            ),
        )
    }
    assert len(keys) == 8
    assert key_of(subject(model), SMALL) == key_of(
        subject(model, latent={"samples": torch.zeros(1, 4, 8, 8)}), SMALL
    )


def test_key_is_the_same_while_a_lora_is_in_the_weights(model) -> None:
    """Sampling patches the weights in place; the key is of the weights in the file."""
    patched, _ = comfy.sd.load_lora_for_models(model, None, LORA, 0.5, 0.0)
    before = identity(patched)
    comfy.model_management.load_models_gpu([patched])
    assert identity(patched) == before


@pytest.mark.parametrize("content", [b"", b"not a profile", "truncated", "another number"])
def test_damaged_file_is_measured_anew_with_a_warning(
    model, user_folder: Path, content, caplog: pytest.LogCaptureFixture
) -> None:
    profile(model)
    (path,) = user_folder.iterdir()
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "another number": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
    }
    path.write_bytes(damaged.get(content, content))
    measured, _ = profile(model)
    assert "measured anew" in caplog.text
    assert measured.linearized is not None
    again = Store(user_folder).load(key_of(subject(model), SMALL))
    assert again is not None
    assert len(path.read_bytes()) == len(whole)
    assert [file.name for file in user_folder.iterdir()] == [path.name]


def test_stale_file_is_measured_anew_with_a_warning(
    model, user_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("dizzydiff.stability.store.VERSION", "0")
        profile(model)
    profile(model)
    assert "another version" in caplog.text
    (path,) = user_folder.iterdir()
    assert Store(path.parent).load(key_of(subject(model), SMALL)) is not None


def test_sampler_measures_on_first_use_only(
    model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("dizzydiff.nodes.stability.THOROUGH", SMALL)

    def sample() -> torch.Tensor:
        return StabilitySampler.execute(model, 5, 3, 3.0, "euler", POSITIVE, NEGATIVE, LATENT, 1.0).result[0][
            "samples"
        ]

    first = sample()
    assert "Measured now by" in caplog.text
    assert first.shape == LATENT["samples"].shape
    assert first.isfinite().all()
    monkeypatch.setattr(measuring, "measure_model", lambda *args: pytest.fail("measured again"))
    assert torch.equal(sample(), first)


def test_model_that_cannot_be_measured_is_sampled_with_cores_sigmas(
    model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, user_folder: Path
) -> None:
    broken = model.clone()
    broken.set_model_sampler_cfg_function(lambda args: args["cond"] * float("nan"))
    measured, plot = profile(broken)
    simple = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 5)
    torch.testing.assert_close(StabilityGrid.execute(measured, 5, 1.0, "euler").result[0], simple)
    assert "not finite" in caplog.text
    assert plot.shape[2:] == (640, 3)
    assert plot.min() < 0.5 < plot.max(), "the plot says why"
    assert measured.origin.startswith("Not measured: ") and "not finite" in measured.origin
    assert not user_folder.exists()


@pytest.mark.parametrize("blend", [float("nan"), -0.1, 1.5])
def test_a_share_that_is_none_is_refused_before_and_in_the_graph(model, blend: float) -> None:
    assert "from 0 to 1" in str(StabilityGrid.validate_inputs(base_blend=blend))
    measured, _ = profile(model)
    with pytest.raises(BadBlend, match="from 0 to 1"):
        StabilityGrid.execute(measured, 5, 1.0, "euler", blend)
    assert StabilityGrid.validate_inputs(base_blend=0.5) is True


@pytest.mark.parametrize(("levels", "probes"), [(3, 2), (float("nan"), 2), (8, 0), (8, 10**6), (8.0, 2)])
def test_an_effort_that_cannot_be_measured_is_refused(model, levels, probes) -> None:
    """A link may bring any number."""
    with pytest.raises(BadEffort, match="expected a whole number from"):
        StabilityProfile.execute(model, POSITIVE, NEGATIVE, 3.0, LATENT, levels, probes, 0)


@pytest.mark.parametrize("gives", [ValueError("not this model"), None, torch.full((6,), torch.nan)], ids=str)
def test_a_scheduler_of_another_pack_may_fail(
    model, gives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it raises is said once, and the grid is the one without it."""

    def scheduler(sampling: object, steps: int) -> object:
        if isinstance(gives, Exception):
            raise gives
        return gives

    measured, _ = profile(model)
    expected = StabilityGrid.execute(measured, 5, 1.0, "euler").result[0]
    handlers = {**comfy.samplers.SCHEDULER_HANDLERS, "other": comfy.samplers.SchedulerHandler(scheduler)}
    monkeypatch.setattr(comfy.samplers, "SCHEDULER_HANDLERS", handlers)
    monkeypatch.setattr(comfy.samplers, "SCHEDULER_NAMES", list(handlers))
    assert torch.equal(StabilityGrid.execute(measured, 5, 1.0, "euler").result[0], expected)
    said = [record for record in caplog.records if "left out: other" in record.getMessage()]
    assert len(said) == (gives is None or isinstance(gives, Exception))


def test_nested_latents_are_sampled_with_cores_sigmas(model) -> None:
    nested = NestedTensor([torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8)])
    with pytest.raises(CannotMeasure, match="expected one"):
        subject(model, latent={"samples": nested}).noise(2)
    assert (
        measured_once(
            subject(model, latent={"samples": nested}), SMALL, Store(Path()), lambda made, of: None
        ).linearized
        is None
    )


def test_interruption_stops_the_measuring_and_leaves_no_file(model, user_folder: Path) -> None:
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        profile(model)
    assert not user_folder.exists()
    profile(model)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_solvers_are_cores_own(solver: Solver) -> None:
    """Step for step what ComfyUI's samplers of the same name give."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 10
    sigmas = torch.tensor([10.0, 6.0, 2.5, 0.7, 0.1, 0.0], dtype=torch.float64)

    def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) / (1 + sigma[..., None])

    core = comfy.samplers.sampler_object(solver.name).sampler_function(
        lambda x, sigma, **_: denoised(x, sigma), x, sigmas, disable=True
    )
    ours = solver.solve(lambda x, sigma: denoised(x[0], sigma.expand(3))[None], x[None], sigmas[None])[0]
    torch.testing.assert_close(ours, core)


def test_sigmas_of_a_flow_model_lie_half_way_to_cores(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "gains", lambda *_: True)
    flow = ModelSamplingSD3().patch(model, 3.0)[0]
    measured, _ = profile(flow)
    sigmas = StabilityGrid.execute(measured, 6, 1.0, "euler").result[0]
    simple = comfy.samplers.calculate_sigmas(measured.sampling, "simple", 6)
    others = list(measuring.scheduled_grids(measured.sampling, 6).values())
    own = grids.make_grid(measured.linearized, 6, EULER, others)
    torch.testing.assert_close(sigmas[:-1].square(), (own[:-1] * simple[:-1]).float())
