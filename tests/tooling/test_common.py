# SPDX-License-Identifier: GPL-3.0-or-later
"""The small shared pieces: files are written whole or not at all, alpha is what a model's states are
made with, steps are the solvers'.
"""

from __future__ import annotations

import math
import os
import stat
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from dizzydiff.common.alpha import alpha_flow, alpha_of, alpha_ve, is_flow
from dizzydiff.common.errors import UserError
from dizzydiff.common.files import replacing, write_json, write_safetensors
from dizzydiff.common.pictures import LogAxis, image_of
from dizzydiff.common.steps import dpmpp_2m_step, euler_step

SIGMAS = st.floats(1e-3, 80.0)


def test_a_failed_write_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    write_json(file, {"old": True})
    with pytest.raises(ZeroDivisionError), replacing(file) as unfinished:
        unfinished.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert file.read_text(encoding="utf-8").split() == ["{", '"old":', "true", "}"]
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_written_file_can_be_read_by_whom_any_new_file_can(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_safetensors(tmp_path / "new" / "file.safetensors", {"a": torch.ones(2, 3).T}, {"key": "value"})
    written = tmp_path / "new" / "file.safetensors"
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert torch.equal(load_file(written)["a"], torch.ones(3, 2))


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 250 + ".json")
    write_json(file, [])
    assert file.read_text(encoding="utf-8") == "[]\n"


@given(SIGMAS)
def test_alpha_is_the_same_of_numbers_and_tensors(sigma: float) -> None:
    for alpha in (alpha_ve, alpha_flow):
        assert float(alpha(torch.tensor(sigma, dtype=torch.float64))) == alpha(sigma)
    assert (alpha_ve(sigma), alpha_flow(0.25)) == (1.0, 0.75)


def test_a_models_states_are_asked_of_its_own_scaling() -> None:
    flow = types.SimpleNamespace(
        noise_scaling=lambda sigma, noise, latent: sigma * noise + (1 - sigma) * latent
    )
    eps = types.SimpleNamespace(noise_scaling=lambda sigma, noise, latent: sigma * noise + latent)
    assert (is_flow(flow), is_flow(eps)) == (True, False)
    assert (alpha_of(flow), alpha_of(eps)) == (alpha_flow, alpha_ve)


@given(SIGMAS, st.floats(0.05, 0.95))
def test_a_constant_prediction_is_followed_exactly_by_both_steps(sigma: float, share: float) -> None:
    """With D fixed, x - D shrinks as sigma does, whatever the step."""
    x, D = torch.tensor([3.0, -1.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    expected = D + share * (x - D)
    torch.testing.assert_close(euler_step(x, D, sigma, share * sigma), expected)
    h = -math.log(share)
    torch.testing.assert_close(dpmpp_2m_step(x, D, D, h, 0.7), expected)
    torch.testing.assert_close(dpmpp_2m_step(x, D, None, torch.tensor(h), torch.tensor(0.7)), expected)


def test_the_second_order_step_is_exact_to_its_order() -> None:
    """D = ln(1 / sigma) is linear in the solver's time, which a step of order two integrates: x' - e^-h x =
    int e^(l - h') D dl = D' - 1 - e^-h (D - 1).
    """
    h, h_last, D = 0.4, 0.9, 1.7
    tensor = lambda value: torch.tensor([value], dtype=torch.float64)  # noqa: E731
    exact = math.exp(-h) * 2.0 + (D + h - 1) - math.exp(-h) * (D - 1)
    got = dpmpp_2m_step(tensor(2.0), tensor(D), tensor(D - h_last), h, h_last)
    # The method takes D at the middle of the step for its mean, which leaves an error of the third order.
    assert abs(float(got) - exact) < h**3 / 10


def test_a_picture_becomes_comfyuis_image() -> None:
    image = image_of(Image.new("RGB", (3, 2), (255, 0, 51)))
    assert image.shape == (1, 2, 3, 3)
    torch.testing.assert_close(image[0, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_a_logarithmic_axis_puts_powers_of_ten_at_equal_distances() -> None:
    axis = LogAxis(0.01, 100.0, 50.0, 450.0)
    assert axis.decades() == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0])
    assert [axis(value) for value in axis.decades()] == pytest.approx([50.0, 150.0, 250.0, 350.0, 450.0])


def test_errors_are_named_after_the_pack_and_not_after_its_place() -> None:
    from dizzydiff.drafting.errors import BadDevices
    from dizzydiff.stability.errors import BadSteps
    from dizzydiff.students.distill.errors import BadPlan

    for kind in (UserError, BadDevices, BadSteps, BadPlan):
        assert issubclass(kind, UserError)
        assert f"{kind.__module__}.{kind.__qualname__}" == f"dizzydiff.{kind.__name__}"
