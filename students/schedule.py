# SPDX-License-Identifier: GPL-3.0-or-later
"""How a network was trained to denoise: diffusers' scheduler config in core's terms."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from .errors import UnsupportedModel
from .files import Config
from .guidance import OF_WIDTH, GuidanceInput

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}
"""diffusers' name -> core's."""


@dataclass(frozen=True)
class Schedule:
    """How a network was trained to denoise.

    prediction: "eps", "v", "x0" or "flow"; settings: core's ``sampling_settings``; trained_betas: [T] or
    None; lcm_steps: the K timesteps an LCM was distilled on, or None.
    """

    prediction: str
    settings: dict[str, Any] = field(default_factory=dict)
    trained_betas: tuple[float, ...] | None = None
    lcm_steps: int | None = None


def read_schedule(config: Config | None, name: str) -> Schedule | None:
    """What a diffusers scheduler config (or a file's metadata) says, None where it says nothing.

    Unset keys take diffusers' defaults. Raises UnsupportedModel for what core's samplers do not have.
    """
    if not config or not {"_class_name", "prediction_type", "beta_schedule"} & set(config):
        return None
    if "FlowMatch" in config.get("_class_name", "") or config.get("prediction_type") == "flow_prediction":
        shift = float(config.get("shift", config.get("flow_shift", 1.0)))
        return Schedule("flow", {"shift": shift, "multiplier": 1000})
    lcm = config.get("_class_name") == "LCMScheduler"
    prediction = config.get("prediction_type", "epsilon")
    beta_schedule = config.get("beta_schedule", "scaled_linear" if lcm else "linear")
    if prediction not in PREDICTIONS or beta_schedule not in BETA_SCHEDULES:
        raise UnsupportedModel(
            f"{name}: scheduler with prediction_type {prediction!r} and beta_schedule {beta_schedule!r}; "
            f"expected one of {sorted(PREDICTIONS)} and one of {sorted(BETA_SCHEDULES)}."
        )
    settings = {
        "beta_schedule": BETA_SCHEDULES[beta_schedule],
        "timesteps": int(config.get("num_train_timesteps", 1000)),
        "linear_start": float(config.get("beta_start", 0.00085 if lcm else 0.0001)),
        "linear_end": float(config.get("beta_end", 0.012 if lcm else 0.02)),
        "zsnr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    betas = config.get("trained_betas")
    return Schedule(
        PREDICTIONS[prediction],
        settings,
        tuple(betas) if betas else None,
        int(config.get("original_inference_steps", 50)) if lcm else None,
    )


def usual_schedule(
    guidance: GuidanceInput | None, *, declared: bool, marks: Collection[str], detected_v: bool
) -> Schedule:
    """The schedule of a network that comes without a scheduler config.

    That of its guidance family, unless the file declares conventions of its own (``declared``) or bears the
    mark ``v_pred``; else v or epsilon as core detects it in the weights.
    """
    lcm_steps = None if guidance is None else OF_WIDTH[guidance.width].lcm_steps
    if lcm_steps is not None and not declared and "v_pred" not in marks:
        return Schedule("eps", lcm_steps=lcm_steps)
    return Schedule("v" if detected_v or "v_pred" in marks else "eps", {"zsnr": "ztsnr" in marks})
