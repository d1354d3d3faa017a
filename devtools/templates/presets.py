# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of today and how each is sampled: one row a template. Files, sizes and settings are those of
ComfyUI's own template of the same model; what drafting adds are tolerance and predictions per round.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A file to download: its folder under models/, and its address below huggingface.co."""

    directory: str
    repository: str
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.path}"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Of one model. text and vae: none where a checkpoint has them. second: the model for the low noise, from
    half of the steps on. shift: a node and its value. length: frames, 0 for pictures. negative: None where it
    is not used. predictions: per round, 0 for one a device.
    """

    name: str
    title: str
    diffusion: Model
    text: tuple[Model, ...] = ()
    text_type: str = ""
    vae: Model | None = None
    second: Model | None = None
    latent: str = "EmptySD3LatentImage"
    size: tuple[int, int] = (1024, 1024)
    length: int = 0
    fps: float = 0.0
    shift: tuple[str, float] | None = None
    prompt: str
    negative: str | None = None
    guidance: float | None = None
    cfg: float = 1.0
    steps: int
    sampler: str = "euler"
    scheduler: str = "simple"
    tolerance: float = 0.01
    predictions: int = 0


def _comfy(directory: str, repository: str, path: str) -> Model:
    return Model(directory, f"Comfy-Org/{repository}", path)


def _split(directory: str, repository: str, name: str) -> Model:
    return _comfy(directory, repository, f"split_files/{directory}/{name}")


_CLIP_L = Model("text_encoders", "comfyanonymous/flux_text_encoders", "clip_l.safetensors")
_T5 = Model("text_encoders", "comfyanonymous/flux_text_encoders", "t5xxl_fp8_e4m3fn_scaled.safetensors")
_T5_FULL = Model("text_encoders", "comfyanonymous/flux_text_encoders", "t5xxl_fp16.safetensors")
_QWEN_3 = _split("text_encoders", "z_image_turbo", "qwen_3_4b.safetensors")
_UMT5 = _split("text_encoders", "Wan_2.1_ComfyUI_repackaged", "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
_AE = _split("vae", "z_image_turbo", "ae.safetensors")
_LUMINA_AE = _split("vae", "Lumina_Image_2.0_Repackaged", "ae.safetensors")
_WAN = "Wan_2.2_ComfyUI_Repackaged"
_HUNYUAN = "HunyuanVideo_1.5_repackaged"
_QWEN_IMAGE = "Qwen-Image_ComfyUI"
_LIGHTHOUSE = "a lighthouse on a cliff in a storm, oil painting"
_FOX = "a fox runs through fresh snow at dawn, the camera follows it from the side"

PRESETS = (
    Preset(
        name="with_chroma",
        title="Chroma 1 HD",
        diffusion=_comfy(
            "diffusion_models",
            "Chroma1-HD_repackaged",
            "split_files/diffusion_models/Chroma1-HD-fp8mixed.safetensors",
        ),
        text=(_T5,),
        text_type="chroma",
        vae=_LUMINA_AE,
        shift=("ModelSamplingAuraFlow", 1.0),
        prompt=_LIGHTHOUSE,
        negative="low quality, unfinished, blurred",
        cfg=3.5,
        steps=26,
        scheduler="beta",
    ),
    Preset(
        name="with_flux_1",
        title="Flux.1 dev",
        diffusion=_comfy("diffusion_models", "flux1-dev", "flux1-dev.safetensors"),
        text=(_CLIP_L, _T5_FULL),
        text_type="flux",
        vae=_LUMINA_AE,
        prompt=_LIGHTHOUSE,
        guidance=3.5,
        steps=20,
    ),
    Preset(
        name="with_flux_1_krea",
        title="Flux.1 Krea dev",
        diffusion=_split(
            "diffusion_models", "FLUX.1-Krea-dev_ComfyUI", "flux1-krea-dev_fp8_scaled.safetensors"
        ),
        text=(_CLIP_L, _T5_FULL),
        text_type="flux",
        vae=_LUMINA_AE,
        prompt=_LIGHTHOUSE,
        guidance=3.5,
        steps=20,
    ),
    Preset(
        name="with_flux_2",
        title="Flux.2 dev",
        diffusion=_split("diffusion_models", "flux2-dev", "flux2_dev_fp8mixed.safetensors"),
        text=(_split("text_encoders", "flux2-dev", "mistral_3_small_flux2_bf16.safetensors"),),
        text_type="flux2",
        vae=Model("vae", "black-forest-labs/FLUX.2-small-decoder", "full_encoder_small_decoder.safetensors"),
        latent="EmptyFlux2LatentImage",
        prompt=_LIGHTHOUSE,
        guidance=4.0,
        steps=20,
        scheduler="Flux2Scheduler",
    ),
    Preset(
        name="with_flux_2_klein",
        title="Flux.2 Klein base 4B",
        diffusion=_split("diffusion_models", "flux2-klein", "flux-2-klein-base-4b.safetensors"),
        text=(_split("text_encoders", "flux2-klein", "qwen_3_4b.safetensors"),),
        text_type="flux2",
        vae=_split("vae", "flux2-dev", "flux2-vae.safetensors"),
        latent="EmptyFlux2LatentImage",
        prompt=_LIGHTHOUSE,
        negative="",
        cfg=5.0,
        steps=20,
        scheduler="Flux2Scheduler",
    ),
    Preset(
        name="with_hunyuan_video",
        title="HunyuanVideo 1.5",
        diffusion=_split("diffusion_models", _HUNYUAN, "hunyuanvideo1.5_720p_t2v_fp16.safetensors"),
        text=(
            _split("text_encoders", _HUNYUAN, "qwen_2.5_vl_7b_fp8_scaled.safetensors"),
            _split("text_encoders", _HUNYUAN, "byt5_small_glyphxl_fp16.safetensors"),
        ),
        text_type="hunyuan_video_15",
        vae=_split("vae", _HUNYUAN, "hunyuanvideo15_vae_fp16.safetensors"),
        latent="EmptyHunyuanVideo15Latent",
        size=(1280, 720),
        length=121,
        fps=24.0,
        shift=("ModelSamplingSD3", 7.0),
        prompt=_FOX,
        negative="",
        cfg=6.0,
        steps=20,
    ),
    Preset(
        name="with_krea_2_turbo",
        title="Krea 2 Turbo",
        diffusion=_comfy("diffusion_models", "Krea-2", "diffusion_models/krea2_turbo_fp8_scaled.safetensors"),
        text=(_comfy("text_encoders", "Krea-2", "text_encoders/qwen3vl_4b_fp8_scaled.safetensors"),),
        text_type="krea2",
        vae=_comfy("vae", "Krea-2", "vae/qwen_image_vae.safetensors"),
        latent="EmptyLatentImage",
        prompt=_LIGHTHOUSE,
        steps=8,
    ),
    Preset(
        name="with_ltx_2",
        title="LTX-2, video with sound",
        diffusion=Model("checkpoints", "Lightricks/LTX-2", "ltx-2-19b-dev-fp8.safetensors"),
        text=(_split("text_encoders", "ltx-2", "gemma_3_12B_it_fp4_mixed.safetensors"),),
        latent="EmptyLTXVLatentVideo",
        size=(768, 512),
        length=97,
        fps=24.0,
        prompt=f"{_FOX}, its steps crunch in the snow",
        negative="blurry, low quality, still frame, watermark, titles, subtitles",
        cfg=4.0,
        steps=20,
        sampler="euler_ancestral",
        scheduler="LTXVScheduler",
    ),
    Preset(
        name="with_qwen_image",
        title="Qwen-Image 2512",
        diffusion=_split("diffusion_models", _QWEN_IMAGE, "qwen_image_2512_fp8_e4m3fn.safetensors"),
        text=(_split("text_encoders", _QWEN_IMAGE, "qwen_2.5_vl_7b_fp8_scaled.safetensors"),),
        text_type="qwen_image",
        vae=_split("vae", _QWEN_IMAGE, "qwen_image_vae.safetensors"),
        size=(1328, 1328),
        shift=("ModelSamplingAuraFlow", 3.1),
        prompt=_LIGHTHOUSE,
        negative="低分辨率，低画质，肢体畸形，画面过饱和，构图混乱，文字模糊，扭曲",
        cfg=4.0,
        steps=50,
    ),
    Preset(
        name="with_sd_3_5",
        title="Stable Diffusion 3.5 Large",
        diffusion=_comfy("checkpoints", "stable-diffusion-3.5-fp8", "sd3.5_large_fp8_scaled.safetensors"),
        prompt=_LIGHTHOUSE,
        negative="",
        cfg=4.0,
        steps=20,
        scheduler="sgm_uniform",
    ),
    Preset(
        name="with_wan_2_2_14b",
        title="Wan 2.2 14B, two models",
        diffusion=_split("diffusion_models", _WAN, "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"),
        second=_split("diffusion_models", _WAN, "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"),
        text=(_UMT5,),
        text_type="wan",
        vae=_split("vae", _WAN, "wan_2.1_vae.safetensors"),
        latent="EmptyHunyuanLatentVideo",
        size=(640, 640),
        length=81,
        fps=16.0,
        shift=("ModelSamplingSD3", 5.0),
        prompt=_FOX,
        negative="色调艳丽，过曝，静态，细节模糊不清，字幕，最差质量，低质量，静止不动的画面，杂乱的背景",
        cfg=3.5,
        steps=20,
    ),
    Preset(
        name="with_wan_2_2_5b",
        title="Wan 2.2 5B",
        diffusion=_split("diffusion_models", _WAN, "wan2.2_ti2v_5B_fp16.safetensors"),
        text=(_UMT5,),
        text_type="wan",
        vae=_split("vae", _WAN, "wan2.2_vae.safetensors"),
        latent="Wan22ImageToVideoLatent",
        size=(1280, 704),
        length=121,
        fps=24.0,
        shift=("ModelSamplingSD3", 8.0),
        prompt=_FOX,
        negative="色调艳丽，过曝，静态，细节模糊不清，字幕，最差质量，低质量，静止不动的画面，杂乱的背景",
        cfg=5.0,
        steps=20,
        sampler="uni_pc",
    ),
    Preset(
        name="with_z_image",
        title="Z-Image",
        diffusion=_split("diffusion_models", "z_image", "z_image_bf16.safetensors"),
        text=(_QWEN_3,),
        text_type="lumina2",
        vae=_AE,
        shift=("ModelSamplingAuraFlow", 3.0),
        prompt=_LIGHTHOUSE,
        negative="",
        cfg=4.0,
        steps=25,
        sampler="res_multistep",
    ),
    Preset(
        name="with_z_image_turbo",
        title="Z-Image Turbo",
        diffusion=_split("diffusion_models", "z_image_turbo", "z_image_turbo_bf16.safetensors"),
        text=(_QWEN_3,),
        text_type="lumina2",
        vae=_AE,
        shift=("ModelSamplingAuraFlow", 3.0),
        prompt=_LIGHTHOUSE,
        steps=8,
        sampler="res_multistep",
    ),
)
