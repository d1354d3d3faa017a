# SPDX-License-Identifier: GPL-3.0-or-later
"""Queues one API-format workflow, shows its progress and prints where its pictures are. Runs in the
environment (aiohttp).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp


class PromptFailed(Exception):
    """ComfyUI refused the workflow, or one of its nodes failed."""


def title(workflow: dict[str, Any], node: str) -> str:
    """What the user calls a node."""
    entry = workflow.get(node, {})
    return str(entry.get("_meta", {}).get("title") or entry.get("class_type", node))


def describe(workflow: dict[str, Any], data: dict[str, Any]) -> str | None:
    """One line for a ``progress`` message, at most ten in a run of many steps."""
    value, most = int(data["value"]), int(data["max"])
    tenth = max(1, most // 10)
    return (
        f"{title(workflow, str(data['node']))}: {value}/{most}"
        if value % tenth == 0 or value == most
        else None
    )


async def run_outputs(address: str, workflow: dict[str, Any]) -> list[dict[str, str]]:
    """The pictures of a workflow ({filename, subfolder, type} each; type "temp" is a preview); raises
    :class:`PromptFailed`.
    """
    client = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession(address) as session,
        session.ws_connect("/ws", params={"clientId": client}, max_msg_size=0) as socket,
    ):
        async with session.post("/prompt", json={"prompt": workflow, "client_id": client}) as answer:
            reply = await answer.json()
            if answer.status != 200:
                raise PromptFailed(json.dumps(reply, indent=2))
        pictures: list[dict[str, str]] = []
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != reply["prompt_id"]:
                continue
            if kind == "progress" and (line := describe(workflow, data)):
                print(f"  {line}", flush=True)
            elif kind == "executed":
                pictures += (data.get("output") or {}).get("images", [])
            elif kind == "execution_error":
                raise PromptFailed(f"{title(workflow, str(data['node_id']))}: {data['exception_message']}")
            elif kind == "execution_success":
                return pictures
    raise PromptFailed("ComfyUI closed the connection before the workflow was done.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("workflow", type=Path)
    parser.add_argument("output", type=Path, help="ComfyUI's output folder")
    options = parser.parse_args()
    try:
        made = asyncio.run(
            run_outputs(options.address, json.loads(options.workflow.read_text(encoding="utf-8")))
        )
    except (PromptFailed, aiohttp.ClientError) as failure:
        print(f"The workflow failed: {failure}", file=sys.stderr)
        return 1
    pictures = [picture for picture in made if picture["type"] == "output"]
    for picture in pictures:
        print(options.output / picture["subfolder"] / picture["filename"])
    if not pictures:
        print("The workflow saved no pictures.", file=sys.stderr)
    return 0 if pictures else 1


if __name__ == "__main__":
    sys.exit(main())
