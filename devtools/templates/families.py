# SPDX-License-Identifier: GPL-3.0-or-later
"""The graph of a preset: its loaders, prompt and size, how it is drafted, and what comes out."""

from __future__ import annotations

from typing import Any

from .graph import Column, Info, Node, Output, assemble
from .presets import Model, Preset

LOAD, PROMPT, SAMPLER, SAMPLE, OUTPUT = (
    "Load · 加载",
    "Prompt and size · 提示词和尺寸",
    "Sampler · 采样器",
    "Sample · 采样",
    "Pictures · 图像",
)
FEW_STEPS = 10
"""Fewer leave little to draft."""


def workflow(preset: Preset, info: Info) -> dict[str, Any]:
    """The template of a preset, in the editor's format."""
    if preset.scheduler == "LTXVScheduler":
        columns = _with_sound(preset)
    elif preset.second is not None:
        columns = _two_models(preset)
    elif preset.scheduler == "Flux2Scheduler":
        columns = _custom(preset)
    else:
        columns = _sampled(preset)
    return assemble(preset.name, columns, note_of(preset), models_of(preset), info)


def models_of(preset: Preset) -> list[Model]:
    """All files that a preset needs."""
    every = (preset.diffusion, preset.second, *preset.text, preset.vae)
    return [model for model in every if model is not None]


def note_of(preset: Preset) -> str:
    """What the template says of itself, in English and Chinese: nothing that only the weights can tell."""
    few, few_zh = "", ""
    if preset.steps < FEW_STEPS:
        few = " So few steps leave little to draft: what is gained stands under the node."
        few_zh = "步数这么少，可打的草稿不多：收益见节点下方。"
    return (
        f"**{preset.title}**, drafted: {preset.steps} steps. Files and settings are those of ComfyUI's own "
        "template; it was checked with files of these names, not with the weights."
        f"{few}\n\n"
        "- *Draft Devices*: `auto` puts a copy of the model on every GPU, which needs its memory there. With "
        "one GPU, model calls are skipped where sampler and tolerance allow it.\n"
        "- *tolerance*: how far a draft may be off. 0 samples step by step.\n"
        "- Rounds, calls and seconds stand under the node and in the log.\n\n"
        f"**{preset.title}**，打草稿采样，{preset.steps} 步。文件和设置与 ComfyUI 自带的模板相同；"
        f"只用同名文件检查过，没有用真实权重运行过。{few_zh}\n\n"
        "- “草稿设备”：`auto` 在每个 GPU 上放一份模型，各占一份内存。"
        "只有一个 GPU 时，在采样器和容差允许处跳过模型调用。\n"
        "- “容差”：草稿允许的偏差。0 表示逐步采样。\n"
        "- 轮数、调用次数和秒数显示在节点下方和日志中。\n"
    )


def _loaders(preset: Preset, diffusion: Model, suffix: str = "") -> tuple[list[Node], Output]:
    """A model with its shift on the devices, and the output that has it."""
    unet, shift, devices = f"unet{suffix}", f"shift{suffix}", f"devices{suffix}"
    if diffusion.directory == "checkpoints":
        nodes = [Node(unet, "CheckpointLoaderSimple", {"ckpt_name": diffusion.name})]
    else:
        nodes = [Node(unet, "UNETLoader", {"unet_name": diffusion.name})]
    model: Output = (unet, 0)
    if preset.shift is not None:
        kind, value = preset.shift
        nodes.append(Node(shift, kind, {"model": model, "shift": value}))
        model = (shift, 0)
    nodes.append(
        Node(devices, "DizzyDiffDevices", {"model": model, "predictions_per_round": preset.predictions})
    )
    return nodes, (devices, 0)


def _encoders(preset: Preset) -> tuple[list[Node], Output, Output]:
    """Text encoder and VAE, and their outputs."""
    nodes: list[Node] = []
    clip, vae = ("unet", 1), ("unet", 2)
    names = [model.name for model in preset.text]
    if len(names) == 1:
        nodes.append(Node("clip", "CLIPLoader", {"clip_name": names[0], "type": preset.text_type}))
    elif names:
        given = {"clip_name1": names[0], "clip_name2": names[1], "type": preset.text_type}
        nodes.append(Node("clip", "DualCLIPLoader", given))
    if names:
        clip = ("clip", 0)
    if preset.vae is not None:
        nodes.append(Node("vae", "VAELoader", {"vae_name": preset.vae.name}))
        vae = ("vae", 0)
    return nodes, clip, vae


def _prompt(preset: Preset, clip: Output, vae: Output) -> tuple[Column, Output, Output]:
    """Prompts and the empty latent; the outputs of positive and negative."""
    nodes = [Node("prompt", "CLIPTextEncode", {"clip": clip, "text": preset.prompt}, "Prompt · 提示词")]
    positive: Output = ("prompt", 0)
    if preset.negative is None:
        nodes.append(
            Node(
                "negative",
                "ConditioningZeroOut",
                {"conditioning": positive},
                "Negative (unused at CFG 1) · 负面",
            )
        )
    else:
        nodes.append(
            Node("negative", "CLIPTextEncode", {"clip": clip, "text": preset.negative}, "Negative · 负面")
        )
    if preset.guidance is not None:
        given = {"conditioning": positive, "guidance": preset.guidance}
        nodes.append(Node("guidance", "FluxGuidance", given))
        positive = ("guidance", 0)
    width, height = preset.size
    size: dict[str, Any] = {"width": width, "height": height}
    if preset.length:
        size["length"] = preset.length
    if preset.latent == "Wan22ImageToVideoLatent":
        size["vae"] = vae
    nodes.append(Node("latent", preset.latent, size))
    return Column(PROMPT, 340, nodes), positive, ("negative", 0)


def _output(preset: Preset, samples: Output, vae: Output) -> Column:
    nodes = [Node("decode", "VAEDecode", {"samples": samples, "vae": vae})]
    if preset.length:
        nodes += [
            Node("video", "CreateVideo", {"images": ("decode", 0), "fps": preset.fps}),
            Node("save", "SaveVideo", {"video": ("video", 0), "filename_prefix": preset.name}),
        ]
    else:
        nodes.append(Node("save", "SaveImage", {"images": ("decode", 0), "filename_prefix": preset.name}))
    return Column(OUTPUT, 360, nodes)


def _sampled(preset: Preset) -> list[Column]:
    loaders, model = _loaders(preset, preset.diffusion)
    encoders, clip, vae = _encoders(preset)
    prompt, positive, negative = _prompt(preset, clip, vae)
    given = {
        "model": model,
        "positive": positive,
        "negative": negative,
        "latent_image": ("latent", 0),
        "steps": preset.steps,
        "cfg": preset.cfg,
        "sampler_name": preset.sampler,
        "scheduler": preset.scheduler,
        "tolerance": preset.tolerance,
    }
    sampler = Node("sample", "DizzyDiffDraftRefineKSampler", given)
    return [
        Column(LOAD, 380, [*loaders, *encoders]),
        prompt,
        Column("Draft and refine · 草稿与精修", 420, [sampler]),
        _output(preset, ("sample", 0), vae),
    ]


def _drafting(preset: Preset) -> list[Node]:
    return [
        Node("select", "KSamplerSelect", {"sampler_name": preset.sampler}),
        Node("draft", "DizzyDiffDraftRefine", {"sampler": ("select", 0), "tolerance": preset.tolerance}),
    ]


def _advanced(
    preset: Preset, model: Output, positive: Output, negative: Output, latent: Output
) -> list[Node]:
    """Noise, guider and SamplerCustomAdvanced, for sigmas of the node "sigmas"."""
    if preset.negative is None:
        guider = Node("guider", "BasicGuider", {"model": model, "conditioning": positive})
    else:
        given = {"model": model, "positive": positive, "negative": negative, "cfg": preset.cfg}
        guider = Node("guider", "CFGGuider", given)
    given = {
        "noise": ("noise", 0),
        "guider": ("guider", 0),
        "sampler": ("draft", 0),
        "sigmas": ("sigmas", 0),
        "latent_image": latent,
    }
    return [Node("noise", "RandomNoise"), guider, Node("sample", "SamplerCustomAdvanced", given)]


def _custom(preset: Preset) -> list[Column]:
    loaders, model = _loaders(preset, preset.diffusion)
    encoders, clip, vae = _encoders(preset)
    prompt, positive, negative = _prompt(preset, clip, vae)
    if preset.negative is None:  # BasicGuider has none
        prompt.nodes[:] = [node for node in prompt.nodes if node.key != "negative"]
    width, height = preset.size
    size = {"steps": preset.steps, "width": width, "height": height}
    sigmas = Node("sigmas", preset.scheduler, size)
    return [
        Column(LOAD, 380, [*loaders, *encoders]),
        prompt,
        Column(SAMPLER, 300, [*_drafting(preset), sigmas]),
        Column(SAMPLE, 320, _advanced(preset, model, positive, negative, ("latent", 0))),
        _output(preset, ("sample", 0), vae),
    ]


def _two_models(preset: Preset) -> list[Column]:
    assert preset.second is not None
    high, model = _loaders(preset, preset.diffusion)
    low, second = _loaders(preset, preset.second, "_low")
    encoders, clip, vae = _encoders(preset)
    prompt, positive, negative = _prompt(preset, clip, vae)
    given = {"positive": positive, "negative": negative, "cfg": preset.cfg, "sampler": ("draft", 0)}
    steps = {"model": model, "scheduler": preset.scheduler, "steps": preset.steps}
    sampling = [
        *_drafting(preset),
        Node("sigmas", "BasicScheduler", steps),
        Node("split", "SplitSigmas", {"sigmas": ("sigmas", 0), "step": preset.steps // 2}),
    ]
    first = {"model": model, "sigmas": ("split", 0), "latent_image": ("latent", 0), **given}
    then = {
        "model": second,
        "sigmas": ("split", 1),
        "latent_image": ("sample", 0),
        "add_noise": False,
        **given,
    }
    return [
        Column(LOAD, 380, [*high, *low]),
        Column(prompt.title, prompt.width, [*encoders, *prompt.nodes]),
        Column(SAMPLER, 300, sampling),
        Column(
            SAMPLE,
            320,
            [
                Node("sample", "SamplerCustom", first, "High noise · 高噪声"),
                Node("low", "SamplerCustom", then, "Low noise · 低噪声"),
            ],
        ),
        _output(preset, ("low", 0), vae),
    ]


def _with_sound(preset: Preset) -> list[Column]:
    loaders, model = _loaders(preset, preset.diffusion)
    checkpoint, (text,) = preset.diffusion.name, preset.text
    loaders += [
        Node("clip", "LTXAVTextEncoderLoader", {"text_encoder": text.name, "ckpt_name": checkpoint}),
        Node("audio_vae", "LTXVAudioVAELoader", {"ckpt_name": checkpoint}),
    ]
    prompt, positive, negative = _prompt(preset, ("clip", 0), ("unet", 2))
    rate = {"positive": positive, "negative": negative, "frame_rate": preset.fps}
    sound = {"frames_number": preset.length, "frame_rate": preset.fps, "audio_vae": ("audio_vae", 0)}
    both = {"video_latent": ("latent", 0), "audio_latent": ("sound", 0)}
    prompt.nodes.append(Node("sound", "LTXVEmptyLatentAudio", sound))
    latent = ("both", 0)
    sampling = [
        Node("conditioning", "LTXVConditioning", rate),
        Node("both", "LTXVConcatAVLatent", both, "Video and sound · 视频和声音"),
        Node("sigmas", preset.scheduler, {"steps": preset.steps, "latent": latent}),
        *_drafting(preset),
    ]
    sampled = _advanced(preset, model, ("conditioning", 0), ("conditioning", 1), latent)
    sampled.append(Node("parts", "LTXVSeparateAVLatent", {"av_latent": ("sample", 0)}, "Apart · 分开"))
    output = _output(preset, ("parts", 0), ("unet", 2))
    decode, video, save = output.nodes
    hear = Node("hear", "LTXVAudioVAEDecode", {"samples": ("parts", 1), "audio_vae": ("audio_vae", 0)})
    video = Node(video.key, video.kind, {**video.given, "audio": ("hear", 0)})
    return [
        Column(LOAD, 380, loaders),
        prompt,
        Column(SAMPLER, 300, sampling),
        Column(SAMPLE, 320, sampled),
        Column(output.title, output.width, [decode, hear, video, save]),
    ]
