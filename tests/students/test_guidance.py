# SPDX-License-Identifier: GPL-3.0-or-later
"""The guidance scale, its weight, and the embedding of the weight."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from hypothesis import given
from hypothesis import strategies as st

from dizzydiff.students.errors import BadScales, ConfigMismatch, WrongGuidanceShape
from dizzydiff.students.guidance import (
    Applied,
    GuidanceInput,
    family_elsewhere,
    fourier_embedding,
    guidance_embedding,
    guidance_input,
    parse_scales,
    scales_tensor,
    slow_entries,
)

SCALES = st.floats(0.0, 100.0, allow_nan=False)


def exact_embedding(milliweight: int, width: int) -> list[float]:
    """The definition, in Python's float64."""
    half = width // 2
    angles = [milliweight * 10000.0 ** (-j / (half - 1)) for j in range(half)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


@pytest.mark.parametrize("width", [256, 512])
@given(milliweight=st.integers(-1000, 100_000))
def test_embedding_in_fp32_is_the_float64_one(width: int, milliweight: int) -> None:
    """Within the rounding of the largest angle, 1000 w, in fp32."""
    e = fourier_embedding(torch.tensor([milliweight]), width)
    assert e.dtype == torch.float32
    torch.testing.assert_close(
        e[0].double(),
        torch.tensor(exact_embedding(milliweight, width), dtype=torch.float64),
        rtol=0,
        atol=1e-6 + 4e-7 * abs(milliweight),
    )


@pytest.mark.parametrize("g", [1.0, 3.5, 8.0, 13.0])
def test_embedding_is_diffusers(g: float) -> None:
    w = torch.tensor([g - 1.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=256)
    lcm = guidance_input(256, {}, "lcm")
    torch.testing.assert_close(
        guidance_embedding(lcm.milliweights(torch.tensor([g])), lcm), theirs, rtol=0, atol=1e-4
    )


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=5))
def test_rows_are_embedded_one_by_one(milliweights: list[int]) -> None:
    one = GuidanceInput(256, 1.0, None)
    together = guidance_embedding(torch.tensor(milliweights), one)
    apart = torch.cat([guidance_embedding(torch.tensor([m]), one) for m in milliweights])
    torch.testing.assert_close(together, apart)


@given(low=st.floats(0, 5), width=st.floats(0.5, 20), entries=st.sampled_from([256, 512]))
def test_slow_entries_are_those_that_turn_at_most_once_over_the_trained_range(
    low: float, width: float, entries: int
) -> None:
    slow = slow_entries(GuidanceInput(entries, 1.0, (low, low + width)))
    half = entries // 2
    for j in range(half):
        turns = 1000 * math.exp(-j * math.log(10000.0) / (half - 1)) * width / (2 * math.pi)
        if abs(turns - 1) > 1e-4:
            assert bool(slow[j]) == bool(slow[half + j]) == (turns < 1)


def test_slow_entries_of_two_signals_stand_side_by_side_as_their_embeddings_do() -> None:
    one, two = (slow_entries(GuidanceInput(width, 0.0, (1.0, 8.0))) for width in (512, 1024))
    assert one.any() and not one.all()
    assert torch.equal(two, torch.cat([one, one]))


def test_every_entry_is_slow_where_the_trained_range_is_not_known() -> None:
    assert slow_entries(GuidanceInput(256, 1.0, None)).all()


def test_two_signals_stand_side_by_side() -> None:
    two = GuidanceInput(1024, 0.0, None)
    e = guidance_embedding(torch.tensor([[2000, 700]]), two)
    torch.testing.assert_close(
        e, torch.cat([fourier_embedding(torch.tensor([w]), 512) for w in (2000, 700)], dim=1)
    )
    assert torch.equal(
        guidance_embedding(torch.tensor([700]), two), guidance_embedding(torch.tensor([[700, 700]]), two)
    )


@given(SCALES, st.sampled_from(["g - 1", "g"]))
def test_weights_are_whole_thousandths_of_the_declared_convention(g: float, declared: str) -> None:
    w = guidance_input(256, {"guidance_weight": declared}, "student").milliweights(
        torch.tensor([g], dtype=torch.float64)
    )
    assert w.dtype == torch.int64
    assert abs(int(w) - 1000 * (g - (declared == "g - 1"))) <= 0.5 + 1e-9


def test_conventions_of_the_families() -> None:
    assert guidance_input(256, {}, "lcm") == GuidanceInput(256, 1.0, (3.0, 13.0))
    assert guidance_input(512, {}, "cfg-distill") == GuidanceInput(512, 0.0, None)
    assert guidance_input(1024, {}, "two").signals == 2
    tiny = guidance_input(256, {"guidance_weight": "g - 1", "guidance_scale_range": [1, 8]}, "tiny")
    assert tiny == GuidanceInput(256, 1.0, (1.0, 8.0))


def test_of_two_families_the_one_that_comfyui_cannot_run_is_named() -> None:
    flux, sana = "guidance_in.in_layer.weight", "cfg_embedder.linear_1.weight"
    for keys, applied in (
        ([flux], Applied.COMFYUI),
        ([sana], Applied.NOWHERE),
        ([flux, sana], Applied.NOWHERE),
    ):
        found = family_elsewhere(keys)
        assert found is not None and found.applied is applied
    assert family_elsewhere(["time_embedding.cond_proj.weight"]) is None


@pytest.mark.parametrize(("declared", "offset"), [("g - 1", 1.0), ("g", 0.0)])
@pytest.mark.parametrize("width", [256, 512, 1024])
def test_what_a_file_says_of_its_weights_and_range_wins_over_its_width(
    width: int, declared: str, offset: float
) -> None:
    """A student that declares its weights is none of the family, whose range would not be its own."""
    said = {"guidance_weight": declared}
    assert guidance_input(width, said, "s") == GuidanceInput(width, offset, None)
    assert guidance_input(width, {**said, "guidance_scale_range": [4, 4]}, "s").scale_range == (4.0, 4.0)


@pytest.mark.parametrize(
    ("scale_range", "default"), [(None, 4.0), ((1.0, 8.0), 4.0), ((5.0, 9.0), 5.0), ((1.0, 2.0), 2.0)]
)
def test_default_is_4_within_the_range(scale_range: tuple[float, float] | None, default: float) -> None:
    assert GuidanceInput(256, 1.0, scale_range).default_scale == default


@given(low=SCALES, high=SCALES, g=SCALES)
def test_a_warning_names_the_range_exactly_when_g_is_outside(low: float, high: float, g: float) -> None:
    low, high = sorted((low, high))
    messages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logging.warning", lambda message, *args: messages.append(message % args))
        GuidanceInput(256, 1.0, (low, high)).warn_outside(
            torch.tensor([g], dtype=torch.float64), "student.safetensors"
        )
    assert bool(messages) == (not low <= g <= high)
    assert all("student.safetensors" in m and f"{low:g} to {high:g}" in m for m in messages)


def test_a_warning_names_every_g_that_is_outside_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    GuidanceInput(256, 1.0, (3.0, 13.0)).warn_outside(torch.tensor([1.5, 3.0, 7.0, 13.0, 20.25]), "s")
    assert "guidance 1.5, 20.25 is outside" in caplog.text


@pytest.mark.parametrize("width", [0, 128, 257, 2048])
def test_unknown_widths_are_refused(width: int) -> None:
    with pytest.raises(WrongGuidanceShape, match=r"s\.safetensors.*256, 512 or 1024"):
        guidance_input(width, {}, "s.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_weight": "2g"},
        {"guidance_scale_range": [8, 1]},
        {"guidance_scale_range": "all"},
        {"guidance_scale_range": [1, float("nan")]},
        {"guidance_scale_range": [1]},
    ],
)
def test_unreadable_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigMismatch, match="guidance_"):
        guidance_input(256, settings, "s")


@given(st.lists(SCALES, min_size=1, max_size=6), st.sampled_from([", ", ",", " ", "; ", " ,"]))
def test_scales_survive_writing_and_reading(scales: list[float], separator: str) -> None:
    assert parse_scales(separator.join(repr(g) for g in scales)) == scales


@pytest.mark.parametrize(
    "text", ["", " , ", "1, two", "1,,x", "nan", "inf", "-1", "-0.1", "100.5", "1..2", "__import__('os')"]
)
def test_unreadable_scales_are_shown_back(text: str) -> None:
    with pytest.raises(BadScales) as error:
        parse_scales(text)
    assert f'"{text}"' in str(error.value)


def test_conditioning_may_hold_a_number_a_list_or_a_tensor() -> None:
    assert scales_tensor(2.5, 4.0).tolist() == [2.5]
    assert scales_tensor([1, 2], 4.0).tolist() == [1.0, 2.0]
    assert scales_tensor(torch.tensor([1.0, 2.0]), 4.0).tolist() == [1.0, 2.0]
    assert scales_tensor([[1.0], [2.0]], 4.0).tolist() == [1.0, 2.0]
    assert scales_tensor(None, 4.0).tolist() == [4.0]
    assert scales_tensor(0.1, 4.0).tolist() == [0.1], "in float64, as it was given"
