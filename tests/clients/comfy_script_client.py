# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a graph as Python through comfy-script, runs it and lists the files it saved in a JSON file: ADDRESS
FILE.

A file, since comfy-script prints from a thread of its own, into the middle of a line of ours too."""

import json
import sys
from pathlib import Path

from comfy_script.runtime import Workflow, load

load(sys.argv[1])
from comfy_script.runtime import nodes  # noqa: E402 - made by load()

with Workflow(wait=True):
    model, clip, vae = nodes.DizzyDiffLoadPipeline("tiny")
    prompt = nodes.CLIPTextEncode("a red circle on white", clip)
    positive, latent, _ = nodes.DizzyDiffGuidanceSweep(prompt, nodes.EmptyLatentImage(96, 96, 1), "2, 4")
    sampled = nodes.KSampler(model, 1, 4, 1.0, "euler", "simple", positive, prompt, latent, 1.0)
    saved = nodes.SaveImage(nodes.VAEDecode(sampled, vae), "comfy_script").wait()
Path(sys.argv[2]).write_text(
    json.dumps([picture["filename"] for picture in saved._output["images"]]), encoding="utf-8"
)
