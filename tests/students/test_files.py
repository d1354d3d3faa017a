# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading students: what is found in good files, and what is said about bad ones."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dizzydiff.students import errors, files, layout, library
from dizzydiff.students.guidance import Applied, family_elsewhere
from dizzydiff.students.schedule import read_schedule


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        time_cond_proj_dim=256,
    )


@pytest.fixture
def student(network: UNet2DConditionModel, tmp_path: Path) -> Path:
    path = tmp_path / "student.safetensors"
    save_file({key: t.contiguous() for key, t in network.state_dict().items()}, path)
    return path


def test_layout_is_read_off_the_shapes(network: UNet2DConditionModel) -> None:
    found = layout.read_layout(network.state_dict(), "s")
    expected = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [0, 0, 1, 1],
        "context_dim": 8,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    }
    assert {key: found[key] for key in expected} == expected


@given(st.integers(1, 40), st.integers(1, 40))
def test_width_ratios_give_whole_channels_on_both_sides(first: int, channels: int) -> None:
    ratio = layout.WidthRatio(channels, first)
    for product in (ratio * first, first * ratio):
        assert product == channels and isinstance(product, int)


@pytest.mark.parametrize("prefix", layout.PREFIXES)
def test_prefixes_are_stripped_and_other_models_of_the_file_left_out(
    network: UNet2DConditionModel, prefix: str
) -> None:
    weights = {prefix + key: t for key, t in network.state_dict().items()}
    if prefix:
        weights["first_stage_model.quant_conv.weight"] = torch.zeros(1)
    assert set(layout.unet_weights(weights, "s")) == set(network.state_dict())


def test_weights_stay_on_disk(student: Path, network: UNet2DConditionModel) -> None:
    weights, _ = files.read_weights([student])
    assert all(torch.equal(weights[key], t) for key, t in network.state_dict().items())
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or student.name in mapped.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (3, (3, -1)),
        ([2, 2], (2, -1)),
        ([1, 2], (-1, 32)),
    ],
)
def test_heads_of_a_config(heads: int | list[int], expected: tuple[int, int]) -> None:
    found = {"model_channels": 32, "channel_mult": [1, 2], "use_linear_in_transformer": False}
    read = layout.read_heads(found, {"attention_head_dim": heads}, "s")
    assert (read["num_heads"], read["num_head_channels"]) == expected


def test_heads_that_core_cannot_have_are_refused() -> None:
    found = {"model_channels": 32, "channel_mult": [1, 2], "use_linear_in_transformer": False}
    with pytest.raises(errors.UnsupportedModel, match="attention_head_dim"):
        layout.read_heads(found, {"attention_head_dim": [4, 2]}, "s")


@pytest.mark.parametrize("end", [0, 4, 8, 100, 5000, -1])
def test_truncated_file(student: Path, end: int) -> None:
    student.write_bytes(student.read_bytes()[:end])
    with pytest.raises(errors.DamagedFile, match=student.name):
        files.read_weights([student])


@pytest.mark.parametrize("name", ["student.pth", "student.safetensors"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "opened",))

    path = tmp_path / name
    for write in (
        lambda: path.write_bytes(pickle.dumps({"weights": Trap()})),
        lambda: torch.save({"weights": Trap()}, path),
    ):
        write()
        with pytest.raises(errors.NotSafetensors, match=r"pickle.*\.safetensors"):
            files.read_weights([path])
    assert not (tmp_path / "opened").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "readme.txt"
    path.write_text("this is certainly not a model", encoding="utf-8")
    with pytest.raises(errors.NotSafetensors, match="readme"):
        files.read_weights([path])


def test_disappeared_file(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile, match="gone"):
        files.read_weights([tmp_path / "gone.safetensors"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_one_bad_number_is_found_and_named(value: float, dtype: torch.dtype) -> None:
    weights = {
        "good": torch.ones(3).to(dtype),
        "bad.weight": torch.tensor([1.0, value, 2.0]).to(dtype),
        "ids": torch.arange(3),
    }
    with pytest.raises(errors.NotFinite, match=r"s: bad\.weight"):
        files.check_finite(weights, "s")
    del weights["bad.weight"]
    files.check_finite(weights, "s")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_of_a_flipped_bit_is_found(dtype: torch.dtype) -> None:
    weights = {"flipped": torch.ones(1000).to(dtype)}
    files.check_finite(weights, "s")
    weights["flipped"][7] = 3e30
    with pytest.raises(errors.NotFinite, match="far beyond"):
        files.check_finite(weights, "s")


@pytest.mark.parametrize("shape", [(31, 256), (256,), (32, 16, 16)])
def test_projection_that_does_not_fit_the_network(
    network: UNet2DConditionModel, shape: tuple[int, ...]
) -> None:
    weights = {**network.state_dict(), layout.GUIDANCE_KEY: torch.zeros(shape)}
    with pytest.raises(errors.WrongGuidanceShape, match=r"32, 256, 512 or 1024"):
        layout.guidance_width(weights, "s")


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("block_out_channels", [32, 96], errors.ConfigMismatch),
        ("layers_per_block", 2, errors.ConfigMismatch),
        ("cross_attention_dim", 768, errors.ConfigMismatch),
        ("time_cond_proj_dim", 512, errors.ConfigMismatch),
        ("time_cond_proj_dim", None, errors.ConfigMismatch),
        ("in_channels", 9, errors.ConfigMismatch),
        ("act_fn", "gelu", errors.UnsupportedModel),
        ("norm_num_groups", 16, errors.UnsupportedModel),
    ],
)
def test_config_that_disagrees(
    network: UNet2DConditionModel, key: str, value: object, error: type[Exception]
) -> None:
    found = layout.read_layout(network.state_dict(), "s")
    layout.check_config(dict(network.config), found, 256, "s")
    with pytest.raises(error, match=key):
        layout.check_config({**network.config, key: value}, found, 256, "s")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00"])
def test_broken_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(errors.DamagedFile, match=r"config\.json"):
        files.read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../b", "/etc/passwd", "\\\\host\\share", "C:\\model", "a\\..\\b", ""]
)
def test_names_cannot_leave_the_models_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.OutsideModelsFolder):
        library.inside(tmp_path, name)
    with pytest.raises(errors.OutsideModelsFolder):
        library.find_student(name, {}, [tmp_path])
    with pytest.raises(errors.OutsideModelsFolder):
        library.find_pipeline(name, [tmp_path], tmp_path)


@pytest.mark.parametrize(
    ("keys", "applied"),
    [
        (["guidance_in.in_layer.weight"], Applied.COMFYUI),
        (["time_text_embed.guidance_embedder.linear_1.weight"], Applied.COMFYUI),
        (["cfg_embedder.mlp.0.weight", "guidance_in.in_layer.weight"], Applied.NOWHERE),
        ([layout.GUIDANCE_KEY, "conv_in.weight"], None),
    ],
)
def test_families_are_told_apart_by_their_keys(keys: list[str], applied: Applied | None) -> None:
    family = family_elsewhere(keys)
    assert (None if family is None else family.applied) is applied


def test_schedule_of_a_config() -> None:
    v = read_schedule(
        {
            "_class_name": "DDIMScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.02,
            "prediction_type": "v_prediction",
        },
        "s",
    )
    assert v is not None
    assert (v.prediction, v.settings["beta_schedule"], v.settings["linear_end"], v.lcm_steps) == (
        "v",
        "linear",
        0.02,
        None,
    )
    lcm = read_schedule({"_class_name": "LCMScheduler", "original_inference_steps": 40}, "s")
    assert lcm is not None
    assert (lcm.prediction, lcm.settings["linear_end"], lcm.lcm_steps) == ("eps", 0.012, 40)
    flow = read_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "s")
    assert flow is not None
    assert (flow.prediction, flow.settings["shift"]) == ("flow", 3.0)
    assert read_schedule(None, "s") is None


@pytest.mark.parametrize(
    "config", [{"prediction_type": "sigma"}, {"prediction_type": "epsilon", "beta_schedule": "exponential"}]
)
def test_schedule_that_core_does_not_have(config: dict[str, str]) -> None:
    with pytest.raises(errors.UnsupportedModel, match="scheduler"):
        read_schedule(config, "s")


def test_pipelines_are_listed_by_their_unets(tmp_path: Path) -> None:
    def add(folder: Path, kind: str = "UNet2DConditionModel") -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"_class_name": kind}), encoding="utf-8")

    diffusers, embedded = tmp_path / "diffusers", tmp_path / "pack" / "tiny"
    for sub in ("unet", "teacher"):
        add(embedded / sub)
        add(diffusers / "nested" / "mine" / sub)
    add(diffusers / "nested" / "mine" / "vae", "AutoencoderKL")
    add(diffusers / "no-index" / "unet")
    (diffusers / "nested" / "mine" / "model_index.json").write_text("{}", encoding="utf-8")
    names = list(library.pipeline_unets([diffusers], embedded))
    assert names == ["tiny", "tiny/teacher", "nested/mine", "nested/mine/teacher"]
    assert (
        library.find_pipeline("nested/mine/teacher", [diffusers], embedded)
        == diffusers / "nested/mine/teacher"
    )
    with pytest.raises(errors.MissingFile, match="other"):
        library.find_pipeline("other", [diffusers], embedded)


def test_folder_of_pickles_and_empty_folder_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile, match="diffusion_pytorch_model"):
        files.weight_files(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(errors.NotSafetensors, match="safe_serialization"):
        files.weight_files(tmp_path)


STEM = "diffusion_pytorch_model"


def save_shards(folder: Path, *names: str) -> None:
    for n, name in enumerate(names):
        save_file({f"w{n}": torch.full((2,), float(n))}, folder / f"{STEM}{name}.safetensors")


@pytest.mark.parametrize(
    "names",
    [
        ("-00001-of-00002", "-00002-of-00002"),
        (".fp16-00001-of-00002", ".fp16-00002-of-00002"),
        ("-00001-of-00002.fp16", "-00002-of-00002.fp16"),
    ],
    ids=["full precision", "fp16", "fp16 before diffusers 0.30"],
)
def test_shards_are_read_as_one(tmp_path: Path, names: tuple[str, ...]) -> None:
    save_shards(tmp_path, *names)
    weights, _ = files.read_weights(files.weight_files(tmp_path))
    assert sorted(weights) == ["w0", "w1"]


def test_shards_in_full_precision_come_before_those_in_fp16(tmp_path: Path) -> None:
    save_shards(tmp_path, ".fp16-00001-of-00001", "-00001-of-00001")
    assert [path.name for path in files.weight_files(tmp_path)] == [f"{STEM}-00001-of-00001.safetensors"]


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        (("-00002-of-00003", "-00003-of-00003"), errors.MissingFile, f"shard 1 of 3 of {STEM} is missing"),
        (("-00001-of-00002",), errors.MissingFile, "shard 2 of 2"),
        ((".fp16-00001-of-00002",), errors.MissingFile, r"shard 2 of 2 of .*fp16"),
        (
            ("-00001-of-00002", "-00002-of-00002", "-00001-of-00003"),
            errors.DamagedFile,
            "several downloads, of 00002 and of 00003",
        ),
        (("-00001-of-99999999",), errors.MissingFile, "is missing"),
    ],
)
def test_shards_that_are_not_one_download_are_refused(
    tmp_path: Path, names: tuple[str, ...], error: type[Exception], said: str
) -> None:
    save_shards(tmp_path, *names)
    with pytest.raises(error, match=said):
        files.weight_files(tmp_path)


def test_files_read_into_memory_can_be_replaced(student: Path) -> None:
    """Windows lets nobody replace a file that is mapped."""
    kept, _ = files.read_weights([student], mapped=False)
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or student.name not in mapped.read_text(encoding="utf-8")
    assert all(torch.equal(kept[key], tensor) for key, tensor in files.read_weights([student])[0].items())


def make_unreadable(config: Path, how: str) -> None:
    if how == "directory":
        config.mkdir()
    elif how == "pipe":
        os.mkfifo(config)
    elif how == "lost link":
        config.symlink_to(config.with_name("nowhere"))
    else:
        texts = {
            "nested": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "digits": b'{"a": ' + b"9" * 5000 + b"}",
            "latin": b'{"a": "\xe9"}',
            "list": b"[]",
            "empty": b"",
        }
        config.write_bytes(texts[how])


@pytest.mark.parametrize(
    "how", ["directory", "pipe", "lost link", "nested", "digits", "latin", "list", "empty"]
)
def test_one_bad_folder_does_not_take_the_lists_down(tmp_path: Path, how: str) -> None:
    good = {"_class_name": "UNet2DConditionModel", "time_cond_proj_dim": 256}
    for name in ("good", "pipe/unet"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(good), encoding="utf-8")
    (tmp_path / "pipe" / "model_index.json").write_text("{}", encoding="utf-8")
    for name in ("bad", "pipe/bad"):
        (tmp_path / name).mkdir()
        make_unreadable(tmp_path / name / "config.json", how)
    lone = library.lone_unets([tmp_path])
    assert set(lone) == {"good", "pipe/unet"}
    assert set(library.students_among(lone)) == {"good", "pipe/unet"}
    assert set(library.pipeline_unets([tmp_path], tmp_path / "tiny")) == {"tiny", "pipe"}


def test_linked_folders_are_listed_and_links_in_a_circle_end(tmp_path: Path) -> None:
    elsewhere, models = tmp_path / "elsewhere", tmp_path / "models"
    (elsewhere / "unet").mkdir(parents=True)
    models.mkdir()
    (elsewhere / "unet" / "config.json").write_text(
        '{"_class_name": "UNet2DConditionModel"}', encoding="utf-8"
    )
    (elsewhere / "model_index.json").write_text("{}", encoding="utf-8")
    (models / "linked").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(models, target_is_directory=True)
    assert "linked" in library.pipeline_unets([models], tmp_path / "tiny")
    assert "linked/unet" in library.lone_unets([models])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_train_timesteps", 10**6),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", "1000"),
        ("beta_start", float("nan")),
        ("beta_end", 2.0),
        ("original_inference_steps", 10**30),
        ("trained_betas", [0.1] * 10**5),
        ("trained_betas", [float("nan")]),
    ],
)
def test_schedules_that_no_network_was_trained_with_are_refused(key: str, value: object) -> None:
    with pytest.raises(errors.ConfigMismatch, match=key):
        read_schedule({"_class_name": "LCMScheduler", key: value}, "s")


@pytest.mark.parametrize("heads", [-1, 10**6, "eight", 2.5, [8], True])
def test_heads_that_cannot_be_are_refused(heads: object) -> None:
    found = {"model_channels": 32, "channel_mult": [1, 2], "use_linear_in_transformer": False}
    with pytest.raises(errors.UnsupportedModel, match="attention_head_dim"):
        layout.read_heads(found, {"attention_head_dim": heads}, "s")


def test_integers_are_no_weights(network: UNet2DConditionModel) -> None:
    weights = {**network.state_dict(), "conv_in.bias": torch.zeros(32, dtype=torch.int8)}
    with pytest.raises(errors.UnsupportedModel, match=r"s: conv_in\.bias holds torch\.int8"):
        layout.read_unet(weights, None, "s")
