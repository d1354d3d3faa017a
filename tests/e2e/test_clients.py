# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that talk to ComfyUI's API: what the README shows, comfy-script, an npm client, and a bare
websocket.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from devtools.process import printed
from devtools.server import Server

from .test_server import good_prompt

CLIENTS = Path(__file__).parents[1] / "clients"


def readme(root: Path, server: Server, pattern: str) -> str:
    """An example of the README, with the address of this server."""
    (example,) = re.findall(
        pattern, (root / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert "127.0.0.1:8188" in example
    return example.replace("127.0.0.1:8188", f"127.0.0.1:{server.port}")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed on this system")
def test_the_readmes_curl_example_runs(comfy_server: Server, root: Path) -> None:
    answer = json.loads(printed(["sh", "-c", readme(root, comfy_server, r"^    (curl .*?)$")], root))
    assert comfy_server.finished(answer["prompt_id"])["status"]["status_str"] == "success"


def test_the_readmes_python_example_runs(comfy_server: Server, root: Path) -> None:
    files = printed(
        [sys.executable, "-P", "-c", readme(root, comfy_server, r"^```python\n(.*?)^```")], root
    ).split()
    assert files and all((comfy_server.output / file).is_file() for file in files)


def test_comfy_script_runs_a_graph_of_our_nodes(comfy_server: Server, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    printed(
        [sys.executable, "-P", str(CLIENTS / "comfy_script_client.py"), comfy_server.address, str(saved)],
        tmp_path,
    )
    files = json.loads(saved.read_text(encoding="utf-8"))
    assert len(files) == 2 and all((comfy_server.output / file).is_file() for file in files)


def test_an_npm_client_sees_progress_and_pictures(comfy_server: Server, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clients"
    shutil.copytree(CLIENTS, folder)
    programs = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }  # node and npm of the environment
    printed(["npm", "ci", "--no-audit", "--no-fund"], folder, programs)
    (folder / "prompt.json").write_text(json.dumps(good_prompt(root, 5.1)), encoding="utf-8")
    told = json.loads(
        printed(["node", "client.mjs", f"127.0.0.1:{comfy_server.port}", "prompt.json"], folder, programs)
    )
    assert told["steps"][-1] == [2, 2]
    assert len(told["images"]) == 4


async def heard(
    server: Server, prompt: dict[str, Any], prompt_id_of: str
) -> tuple[list[tuple[int, int]], int]:
    """(progress reports, previews) that the websocket brings while a prompt runs."""
    progress, previews = [], 0
    async with (
        aiohttp.ClientSession(server.address) as session,
        session.ws_connect("/ws", params={"clientId": prompt_id_of}) as socket,
    ):
        body = {"prompt": prompt, "client_id": prompt_id_of, "extra_data": {"preview_method": "latent2rgb"}}
        async with session.post("/prompt", json=body) as answer:
            assert answer.status == 200, await answer.text()
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                previews += 1
                continue
            event = json.loads(message.data)
            if event["type"] == "progress":
                progress.append((event["data"]["value"], event["data"]["max"]))
            elif event["type"] == "execution_success":
                return progress, previews
            assert event["type"] not in ("execution_error", "execution_interrupted"), event
    raise ConnectionError("ComfyUI closed the websocket")


@pytest.mark.parametrize("name", ["guided_student", "draft_refine"])
def test_progress_and_previews_arrive_over_the_websocket(name: str, comfy_server: Server, root: Path) -> None:
    prompt = json.loads((root / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    (sampler,) = [node for node in prompt.values() if "seed" in node["inputs"]]
    sampler["inputs"]["seed"] = 4711
    progress, previews = asyncio.run(heard(comfy_server, prompt, uuid.uuid4().hex))
    steps = sampler["inputs"]["steps"]
    assert progress[-1] == (steps, steps)
    assert previews >= 1
