# SPDX-License-Identifier: GPL-3.0-or-later
"""The doors: what a graph gets from each node, and what it says about bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.nested_tensor import NestedTensor
from comfy.ops import disable_weight_init
from comfy.samplers import KSAMPLER
from comfy.sd import load_diffusion_model
from comfy_execution.utils import CurrentNodeContext
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from comfy_extras.nodes_flux import FluxGuidance
from safetensors.torch import load_file, save_file
from server import PromptServer

import nodes as core_nodes
from dizzydiff.nodes.distill import DistillGuidance
from dizzydiff.nodes.drafting import DraftDevices, DraftRefineKSampler
from dizzydiff.nodes.guidance import GuidanceSweep, StudentGuidance
from dizzydiff.nodes.noise import SpinNoise
from dizzydiff.nodes.notice import show_at_node, show_progress_at_node
from dizzydiff.nodes.students import LoadPipeline, LoadStudent, StudentSampler
from dizzydiff.students import errors
from dizzydiff.students.loader import Source, load_student
from dizzydiff.students.student_model import ignores_guidance

from .networks import save_file_student, save_pipeline, unet

MODELS = Path(folder_paths.get_folder_paths("diffusion_models")[0])


@pytest.fixture(scope="module")
def pipeline() -> str:
    """A random pipeline in ComfyUI's diffusers folder."""
    save_pipeline(Path(folder_paths.get_folder_paths("diffusers")[0]) / "random")
    return "random"


def picture(model, clip, vae, g: float = 4.0) -> torch.Tensor:
    positive = core_nodes.CLIPTextEncode().encode(clip, "a small red circle")[0]
    negative = core_nodes.CLIPTextEncode().encode(clip, "")[0]
    latent = core_nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    guided = StudentGuidance.execute(positive, g).result[0]
    samples = core_nodes.KSampler().sample(model, 7, 2, 1.0, "euler", "normal", guided, negative, latent)[0]
    return core_nodes.VAEDecode().decode(vae, samples)[0]


def test_pipeline_makes_pictures_that_depend_on_guidance(pipeline: str) -> None:
    model, clip, vae = LoadPipeline.execute(pipeline).result
    weak, strong = picture(model, clip, vae, 1.0), picture(model, clip, vae, 8.0)
    assert weak.shape == (1, 64, 64, 3)
    assert (weak - strong).abs().max() > 1e-3


def test_a_node_shows_all_that_it_says_and_the_next_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        def send_progress_text(self, text: str, node: str) -> None:
            shown[node] = text

    shown: dict[str, str] = {}
    monkeypatch.setattr(PromptServer, "instance", Server(), raising=False)
    show_at_node("nobody runs")
    for node in ("1", "2"):
        with CurrentNodeContext("prompt", node):
            for sentence in ("One.", "Two.", "One."):
                show_progress_at_node("0 of 3")
                show_at_node(f"{node}: {sentence}")
            show_progress_at_node("1 of 3")
            assert shown[node] == f"{node}: One.\n{node}: Two.\n1 of 3"
            show_at_node(f"{node}: One.")
    assert shown == {"1": "1: One.\n1: Two.", "2": "2: One.\n2: Two."}


def test_spin_noise_begins_with_core_s_noise_and_turns_each_part_of_a_latent() -> None:
    samples = NestedTensor((torch.zeros(3, 4, 8, 8), torch.zeros(3, 8, 16)))
    turned = SpinNoise.execute(5, 6, 90.0).result[0].generate_noise({"samples": samples}).unbind()
    single = NestedTensor([part[:1] for part in samples.unbind()])
    first, last = (Noise_RandomNoise(seed).generate_noise({"samples": single}).unbind() for seed in (5, 6))
    for part, one, other in zip(turned, first, last, strict=True):
        assert torch.equal(part[:1], one)
        torch.testing.assert_close(part[2:], other, atol=1e-6, rtol=0)
        torch.testing.assert_close(part[1:2], (one + other) / 2**0.5, atol=1e-5, rtol=0)


def test_a_student_that_is_sampled_with_cfg_says_so_and_a_teacher_does_not(
    pipeline: str, caplog: pytest.LogCaptureFixture
) -> None:
    student, clip, _ = LoadPipeline.execute(pipeline).result
    teacher = LoadPipeline.execute(f"{pipeline}/teacher").result[0]
    prompt = core_nodes.CLIPTextEncode().encode(clip, "a circle")[0]
    latent = core_nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    sample(teacher, prompt, latent, 8.0)
    sample(student, prompt, latent, 1.0)
    assert "guided twice" not in caplog.text
    sample(student, prompt, latent, 8.0)
    assert caplog.text.count("guided twice") == 1 and "cfg is 8" in caplog.text

    caplog.clear()
    drafted = DraftRefineKSampler.execute(
        student, 7, 2, 8.0, "euler", "normal", prompt, prompt, latent, 1.0, "verified", 0, 0.01
    )
    assert caplog.text.count("guided twice") == 1
    assert "guided twice" in drafted.ui["text"][0] and "undrafted" in drafted.ui["text"][1]


def test_a_guidance_that_the_model_does_not_take_is_told_once_by_every_way_to_sample(
    pipeline: str, caplog: pytest.LogCaptureFixture
) -> None:
    student, clip, _ = LoadPipeline.execute(pipeline).result
    teacher = LoadPipeline.execute(f"{pipeline}/teacher").result[0]
    prompt = core_nodes.CLIPTextEncode().encode(clip, "a circle")[0]
    guided = StudentGuidance.execute(prompt, 3.5).result[0]
    latent = core_nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    sample(student, guided, latent)
    sample(teacher, prompt, latent)
    StudentGuidance.execute(prompt, 3.5, model=student)
    assert "no effect" not in caplog.text
    for guide in (
        lambda: sample(teacher, guided, latent),
        lambda: sample(DraftDevices.execute(teacher, "batch", 0).result[0], guided, latent),
        lambda: drafted(teacher, guided, latent),
        lambda: StudentGuidance.execute(prompt, 3.5, model=teacher),
    ):
        caplog.clear()
        guide()
        assert caplog.text.count("a guidance of 3.5") == 1


def drafted(model, positive, latent):
    return DraftRefineKSampler.execute(
        model, 7, 2, 1.0, "euler", "normal", positive, positive, latent, 1.0, "verified", 0, 0.01
    )


def test_teacher_of_a_pipeline_samples_with_cfg(pipeline: str) -> None:
    """One step to sigma 0 gives D itself, which is what CFG combines: u + g (c - u)."""
    model, clip, _ = LoadPipeline.execute(f"{pipeline}/teacher").result
    positive, negative = (core_nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a circle", ""))
    latent = core_nodes.EmptyLatentImage().generate(64, 64, 1)[0]

    def denoised(g: float, positive: list, negative: list) -> torch.Tensor:
        return core_nodes.KSampler().sample(model, 7, 1, g, "euler", "normal", positive, negative, latent)[0][
            "samples"
        ]

    c, u = denoised(1.0, positive, negative), denoised(1.0, negative, positive)
    assert (c - u).abs().max() > 1e-3
    torch.testing.assert_close(denoised(4.0, positive, negative), u + 4.0 * (c - u), rtol=1e-4, atol=1e-4)


def student(name: str = "student.safetensors", **kwargs) -> str:
    save_file_student(unet("sd15", block_out_channels=(32, 32, 32, 32)), MODELS / name, **kwargs)
    return name


def sample(model, positive, latent, cfg: float = 1.0) -> torch.Tensor:
    return core_nodes.KSampler().sample(model, 7, 2, cfg, "euler", "normal", positive, positive, latent)[0][
        "samples"
    ]


def test_lists_offer_files_folders_and_the_embedded_pipeline(pipeline: str) -> None:
    student("listed.safetensors")
    students, pipelines = (node.define_schema().inputs[0].options for node in (LoadStudent, LoadPipeline))
    assert {"listed.safetensors", pipeline, "tiny"} <= set(students)
    assert f"{pipeline}/teacher" not in students
    assert {pipeline, f"{pipeline}/teacher", "tiny"} <= set(pipelines)


def test_sweep_is_one_row_a_scale_with_the_same_noise(pipeline: str) -> None:
    """Row by row what separate runs with Student Guidance give."""
    model, clip, _ = LoadPipeline.execute(pipeline).result
    positive = core_nodes.CLIPTextEncode().encode(clip, "a circle")[0]
    latent = core_nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    swept, rows, names = GuidanceSweep.execute(positive, latent, "1, 2.5, 8").result
    assert names == ["guidance_1", "guidance_2.5", "guidance_8"]
    together = sample(model, swept, rows)
    apart = torch.cat(
        [sample(model, StudentGuidance.execute(positive, g).result[0], latent) for g in (1.0, 2.5, 8.0)]
    )
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_sweep_of_a_masked_batch_keeps_images_and_masks_together() -> None:
    latent = {
        "samples": torch.arange(2.0).view(2, 1, 1, 1).expand(2, 4, 8, 8),
        "batch_index": [5, 9],
        "noise_mask": torch.arange(2.0).view(2, 1, 1).expand(2, 64, 64),
    }
    _, rows, names = GuidanceSweep.execute([], latent, "1 2 3").result
    assert names == ["guidance_1", "guidance_2", "guidance_3"] * 2
    assert rows["samples"][:, 0, 0, 0].tolist() == rows["noise_mask"][:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows["batch_index"] == [5, 5, 5, 9, 9, 9]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampler_node_takes_steps_of_twice_the_length_and_noise_one_step_back(
    eta: float, pipeline: str
) -> None:
    """Algorithm 4 of Meng et al., written out for three steps from what the model says at each."""
    from comfy_extras.nodes_custom_sampler import BasicScheduler, SamplerCustom

    model, clip, _ = LoadPipeline.execute(pipeline).result
    positive = core_nodes.CLIPTextEncode().encode(clip, "a circle")[0]
    latent = core_nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    sigmas = BasicScheduler.execute(model, "simple", 3, 1.0).result[0]
    seen: list[dict] = []

    def watched(model, x, sigmas, callback, **options):
        def watch(step: dict) -> None:
            seen.append(step)
            callback(step)

        return node.sampler_function(model, x, sigmas, callback=watch, **options)

    node = StudentSampler.execute(eta).result[0]
    sampler = KSAMPLER(watched, node.extra_options)
    sampled = SamplerCustom.execute(model, True, 1, 1.0, positive, positive, sampler, sigmas, latent).result[
        0
    ]
    x, D = ([step[name] for step in seen] for name in ("x", "denoised"))
    for i in range(2):
        sigma_t, sigma_s = sigmas[i : i + 2]
        sigma_k = sigma_s + eta * (sigmas[i + 2] - sigma_s)
        offset = x[i + 1] - (D[i] + sigma_k / sigma_t * (x[i] - D[i]))
        noise = offset / (sigma_s**2 - sigma_k**2).sqrt() if eta else 1.0 + offset
        assert abs(noise.square().mean() - 1) < (0.2 if eta else 1e-4), (
            "256 numbers of unit variance, or none"
        )
    latents = model.model.process_latent_in(sampled["samples"])
    torch.testing.assert_close(latents, D[-1], rtol=1e-4, atol=1e-4)


def narrow_flux(guidance_embed: bool = True) -> str:
    torch.manual_seed(0)
    network = Flux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        patch_size=2,
        vec_in_dim=16,
        context_in_dim=32,
        hidden_size=128,
        mlp_ratio=4.0,
        num_heads=1,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 56, 56],
        theta=10000,
        qkv_bias=True,
        guidance_embed=guidance_embed,
        txt_ids_dims=[],
        dtype=torch.float32,
        operations=disable_weight_init,
    )
    save_file(
        {key: torch.randn(t.shape) * 0.1 for key, t in network.state_dict().items()},
        MODELS / "flux.safetensors",
    )
    return "flux.safetensors"


@pytest.mark.parametrize("guided", [True, False], ids=["dev", "schnell"])
def test_a_model_of_core_is_asked_whether_it_takes_guidance(guided: bool) -> None:
    model = load_diffusion_model(str(MODELS / narrow_flux(guided)))
    assert ignores_guidance(model) is not guided


def test_flux_goes_through_core_and_sweeps_too() -> None:
    model = LoadStudent.execute(narrow_flux()).result[0]
    positive = [
        [
            torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0)),
            {"pooled_output": torch.ones(1, 16)},
        ]
    ]
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    swept, rows, _ = GuidanceSweep.execute(positive, latent, "1, 6").result
    apart = torch.cat(
        [sample(model, StudentGuidance.execute(positive, g).result[0], latent) for g in (1.0, 6.0)]
    )
    torch.testing.assert_close(sample(model, swept, rows), apart, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(apart[0], apart[1], atol=1e-3)


def narrow_hunyuan_video() -> str:
    torch.manual_seed(0)
    network = HunyuanVideo(
        image_model="hunyuan_video",
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=32,
        hidden_size=128,
        mlp_ratio=4.0,
        num_heads=1,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 56, 56],
        theta=256,
        patch_size=[1, 2, 2],
        qkv_bias=True,
        guidance_embed=True,
        byt5=False,
        meanflow=False,
        use_cond_type_embedding=False,
        vision_in_dim=None,
        meanflow_sum=False,
        dtype=torch.float32,
        operations=disable_weight_init,
    )
    save_file(
        {key: torch.randn(t.shape) * 0.1 for key, t in network.state_dict().items()},
        MODELS / "hunyuan_video.safetensors",
    )
    return "hunyuan_video.safetensors"


def test_hunyuan_video_goes_through_core_and_takes_its_guidance() -> None:
    model = LoadStudent.execute(narrow_hunyuan_video()).result[0]
    positive = [
        [
            torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0)),
            {"pooled_output": torch.ones(1, 768)},
        ]
    ]
    latent = {"samples": torch.zeros(1, 16, 2, 4, 4)}
    weak, strong = (sample(model, StudentGuidance.execute(positive, g).result[0], latent) for g in (1.0, 6.0))
    torch.testing.assert_close(strong, sample(model, FluxGuidance.execute(positive, 6.0).result[0], latent))
    assert not torch.allclose(weak, strong, atol=1e-3)


def edited(change) -> str:
    path = MODELS / student("edited.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    return path.name


def damaged(write) -> str:
    path = MODELS / student("damaged.safetensors")
    write(path)
    return path.name


GUIDANCE = "time_embedding.cond_proj.weight"
BAD_FILES = {
    "truncated": (
        errors.DamagedFile,
        "download it again",
        lambda: damaged(lambda p: p.write_bytes(p.read_bytes()[:-1000])),
    ),
    "not safetensors": (
        errors.NotSafetensors,
        "Expected",
        lambda: damaged(lambda p: p.write_text("hello, I am a text", encoding="utf-8")),
    ),
    "pickle": (
        errors.NotSafetensors,
        "convert",
        lambda: damaged(lambda p: torch.save({"a": torch.zeros(1)}, p)),
    ),
    "disappeared": (errors.MissingFile, "restore", lambda: damaged(Path.unlink)),
    "projection": (
        errors.WrongGuidanceShape,
        "expected",
        lambda: edited(lambda w: w.update({GUIDANCE: torch.zeros(32, 100)})),
    ),
    "projection rows": (
        errors.WrongGuidanceShape,
        "expected",
        lambda: edited(lambda w: w.update({GUIDANCE: torch.zeros(64, 256)})),
    ),
    "no guidance": (
        errors.NoGuidanceInput,
        "Load Checkpoint or Load Diffusion Model",
        lambda: edited(lambda w: w.pop(GUIDANCE)),
    ),
    "nan": (
        errors.NotFinite,
        "another copy",
        lambda: edited(lambda w: w["conv_in.bias"].fill_(float("nan"))),
    ),
    "missing tensor": (
        errors.ConfigMismatch,
        "download",
        lambda: edited(lambda w: w.pop("mid_block.resnets.0.conv1.weight")),
    ),
    "foreign tensor": (
        errors.UnsupportedModel,
        "Expected",
        lambda: edited(lambda w: w.update(motion=torch.zeros(1))),
    ),
    "wrong shape": (
        errors.ConfigMismatch,
        "download",
        lambda: edited(lambda w: w.update({"conv_in.bias": torch.zeros(3)})),
    ),
    "no unet": (
        errors.UnsupportedModel,
        "Load Diffusion Model",
        lambda: edited(lambda w: w.pop("conv_in.weight")),
    ),
    "sana": (
        errors.UnsupportedModel,
        "not supported by your ComfyUI",
        lambda: edited(lambda w: w.update({"cfg_embedder.mlp": torch.zeros(1)})),
    ),
    "leaving": (errors.OutsideModelsFolder, "Expected", lambda: "../../secret.safetensors"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_named_with_what_to_do_and_the_next_one_loads(case: str) -> None:
    error, advice, make = BAD_FILES[case]
    name = make()
    with pytest.raises(error) as raised:
        LoadStudent.execute(name)
    assert type(raised.value) is error
    assert Path(name).name in str(raised.value) and advice in str(raised.value)
    assert LoadStudent.execute(student()).result[0].model.guidance.width == 256


def test_config_that_disagrees_with_the_weights(pipeline: str) -> None:
    folder = Path(folder_paths.get_folder_paths("diffusers")[0])
    shutil.copytree(folder / pipeline, folder / "disagrees", dirs_exist_ok=True)
    config = folder / "disagrees" / "unet" / "config.json"
    told = {**json.loads(config.read_text(encoding="utf-8")), "block_out_channels": [64, 128]}
    config.write_text(json.dumps(told), encoding="utf-8")
    for node in (LoadStudent, LoadPipeline):
        with pytest.raises(errors.ConfigMismatch, match=r"disagrees.*block_out_channels"):
            node.execute("disagrees")


def test_teacher_in_the_student_loader_points_to_the_pipeline_loader(pipeline: str) -> None:
    with pytest.raises(errors.NoGuidanceInput, match="Load Student Pipeline"):
        LoadStudent.execute(f"{pipeline}/teacher")


def test_unreadable_scales_are_shown_back() -> None:
    with pytest.raises(errors.BadScales, match="1, zwei"):
        GuidanceSweep.execute([], {"samples": torch.zeros(1, 4, 8, 8)}, "1, zwei")


def test_a_missing_tensor_anywhere_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    network = unet("tiny", block_out_channels=(32, 32), attention_head_dim=4, cross_attention_dim=8)
    weights = {key: t.contiguous() for key, t in network.state_dict().items()}
    path = tmp_path / "holed.safetensors"
    for key in list(weights)[::6]:
        save_file({k: t for k, t in weights.items() if k != key}, path)
        with pytest.raises(errors.StudentError, match=r"holed\.safetensors"):
            load_student(Source(path, path.name))


@pytest.mark.parametrize("value", [float("nan"), -1.0, 1e9])
def test_values_outside_the_range_are_refused_by_name(value: float) -> None:
    assert "eta" in StudentSampler.validate_inputs(eta=value)
    assert "g_max" in DistillGuidance.validate_inputs(g_max=value)


def test_values_that_another_node_gives_are_left_to_it() -> None:
    assert StudentSampler.validate_inputs(None) is True
    assert DistillGuidance.validate_inputs(None, 8.0) is True
    assert GuidanceSweep.validate_inputs(None) is True


def test_guidance_that_is_no_number_is_refused_where_it_is_used(pipeline: str) -> None:
    with pytest.raises(errors.BadScales, match="nan"):
        StudentGuidance.execute([], float("nan"))
    model, clip, _ = LoadPipeline.execute(pipeline).result
    positive = core_nodes.CLIPTextEncode().encode(clip, "a circle")[0]
    latent = core_nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    with pytest.raises(errors.BadScales, match="nan"):
        sample(model, FluxGuidance.execute(positive, float("nan")).result[0], latent)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "module."])
def test_prefixes_of_other_trainers_are_read(prefix: str) -> None:
    model = LoadStudent.execute(student("prefixed.safetensors", prefix=prefix)).result[0]
    assert model.model.guidance.width == 256


def test_a_folder_of_a_unet_alone_needs_the_schedule_it_was_trained_with(pipeline: str) -> None:
    """It says its own guidance_weight, so it is no LCM; how it denoises cannot be guessed."""
    source = Path(folder_paths.get_folder_paths("diffusers")[0]) / pipeline
    shutil.copytree(source / "unet", MODELS / "alone", dirs_exist_ok=True)
    with pytest.raises(errors.MissingFile, match=r"alone.*scheduler_config\.json"):
        LoadStudent.execute("alone")
    shutil.copy(source / "scheduler" / "scheduler_config.json", MODELS / "alone")
    alone, whole = (LoadStudent.execute(name).result[0] for name in ("alone", pipeline))
    samplings = [model.get_model_object("model_sampling") for model in (alone, whole)]
    assert type(samplings[0]).__mro__[1:3] == type(samplings[1]).__mro__[1:3]
    assert torch.equal(samplings[0].sigmas, samplings[1].sigmas)


def test_a_config_that_asks_for_far_more_than_the_weights_hold_is_refused_at_once(pipeline: str) -> None:
    folder = Path(folder_paths.get_folder_paths("diffusers")[0])
    for part, key in (
        ("text_encoder", "num_hidden_layers"),
        ("unet", "layers_per_block"),
        ("vae", "scaling_factor"),
    ):
        shutil.copytree(folder / pipeline, folder / "greedy", dirs_exist_ok=True)
        config = folder / "greedy" / part / "config.json"
        greedy = {**json.loads(config.read_text(encoding="utf-8")), key: 10**9}
        config.write_text(json.dumps(greedy), encoding="utf-8")
        with pytest.raises(errors.ConfigMismatch, match=rf"greedy.*{key}"):
            LoadPipeline.execute("greedy")
    shutil.rmtree(folder / "greedy")
