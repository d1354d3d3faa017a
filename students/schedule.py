# SPDX-License-Identifier: GPL-3.0-or-later
"""How a network was trained to denoise: diffusers' scheduler config in core's terms."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigMismatch, MissingFile, UnsupportedModel
from .files import Checkpoint, Config, number_in
from .guidance import OF_WIDTH, GuidanceInput

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}
"""diffusers' name -> core's."""
MOST_TIMESTEPS = 10_000
"""A network is trained on a thousand, as a rule."""
MOST_NOISE = 60.0
"""Sum of all betas: what is left of the picture, exp(-sum), is a number in single precision. 10 as a rule."""


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

    Unset keys take diffusers' defaults. Raises UnsupportedModel for what core's samplers do not have, and
    ConfigMismatch for settings that no network was trained with.
    """
    if not config or not {"_class_name", "prediction_type", "beta_schedule"} & set(config):
        return None
    if "FlowMatch" in str(config.get("_class_name")) or config.get("prediction_type") == "flow_prediction":
        key = "shift" if "shift" in config else "flow_shift"
        shift = number_in(config, key, 1.0, (1e-3, MOST_TIMESTEPS), name)
        return Schedule("flow", {"shift": shift, "multiplier": 1000})
    lcm = config.get("_class_name") == "LCMScheduler"
    prediction = config.get("prediction_type", "epsilon")
    beta_schedule = config.get("beta_schedule", "scaled_linear" if lcm else "linear")
    if prediction not in list(PREDICTIONS) or beta_schedule not in list(BETA_SCHEDULES):
        raise UnsupportedModel(
            f"{name}: scheduler with prediction_type {prediction!r} and beta_schedule {beta_schedule!r}; "
            f"expected one of {sorted(PREDICTIONS)} and one of {sorted(BETA_SCHEDULES)}."
        )
    settings = _noise_settings(config, BETA_SCHEDULES[beta_schedule], lcm, name)
    steps = (
        number_in(config, "original_inference_steps", 50, (1, settings["timesteps"]), name) if lcm else None
    )
    return Schedule(
        PREDICTIONS[prediction],
        settings,
        _trained_betas(config.get("trained_betas"), name),
        None if steps is None else int(steps),
    )


def _noise_settings(config: Config, beta_schedule: str, lcm: bool, name: str) -> dict[str, Any]:
    """Core's ``sampling_settings``. Raises ConfigMismatch."""
    timesteps = int(number_in(config, "num_train_timesteps", 1000, (1, MOST_TIMESTEPS), name))
    settings: dict[str, Any] = {
        "beta_schedule": beta_schedule,
        "timesteps": timesteps,
        "linear_start": number_in(config, "beta_start", 0.00085 if lcm else 0.0001, (0, 0.999), name),
        "linear_end": number_in(config, "beta_end", 0.012 if lcm else 0.02, (0, 0.999), name),
        "zsnr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    if (noise := timesteps * (settings["linear_start"] + settings["linear_end"]) / 2) > MOST_NOISE:
        raise ConfigMismatch(
            f"{name}: beta_start {settings['linear_start']:g}, beta_end {settings['linear_end']:g} and "
            f"{timesteps} timesteps leave nothing of a picture (their betas add up to {noise:.0f}). Expected "
            "values such as 0.0001, 0.02 and 1000: download its config again."
        )
    return settings


def _trained_betas(betas: Any, name: str) -> tuple[float, ...] | None:
    if not betas:
        return None
    if (
        not isinstance(betas, list)
        or len(betas) > MOST_TIMESTEPS
        or not all(isinstance(beta, int | float) and 0 < beta < 1 for beta in betas)
    ):
        raise ConfigMismatch(
            f"{name}: the scheduler's trained_betas are no list of at most {MOST_TIMESTEPS} numbers between "
            "0 and 1. Download its config again."
        )
    return tuple(map(float, betas))


def schedule_of(
    found: Checkpoint, guidance: GuidanceInput | None, marks: Collection[str], detected_v: bool, name: str
) -> Schedule:
    """What the file or folder says of its schedule; where it says nothing, that of its guidance family; else
    v or epsilon, as marked or as core detects it in the weights.

    Raises MissingFile for a folder that declares conventions of its own but no schedule, as well as what
    :func:`read_schedule` raises.
    """
    own = found.config or {}
    where = name if found.scheduler is None else f"{name}, scheduler_config.json"
    schedule = read_schedule(found.scheduler or found.metadata, where)
    if schedule is None and "prediction_type" in own:
        schedule = read_schedule({**own, "_class_name": None}, name)
    if schedule is not None:
        return schedule
    if "guidance_weight" in own:
        raise MissingFile(
            f"{name}: its config.json says guidance_weight, and nothing says how the network was trained to "
            "denoise. Expected its scheduler_config.json in the same folder, or in a folder named scheduler "
            "beside it: copy it from where the network is from."
        )
    lcm_steps = None if guidance is None else OF_WIDTH[guidance.width].lcm_steps
    if lcm_steps is not None and "guidance_weight" not in found.metadata and "v_pred" not in marks:
        return Schedule("eps", lcm_steps=lcm_steps)
    return Schedule("v" if detected_v or "v_pred" in marks else "eps", {"zsnr": "ztsnr" in marks})
