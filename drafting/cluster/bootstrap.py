# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ray starts in a worker's process: it makes a ComfyUI of it and hands over to the pack there.

It travels as code, since the pack cannot be imported before its ComfyUI is. So it names nothing of the pack.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

DIRECTORIES = (
    "base_directory",
    "models_directory",
    "output_directory",
    "input_directory",
    "user_directory",
    "temp_directory",
)
"""Of ComfyUI's settings: where this machine has no such folder, its own is taken."""


class Host:
    """A process that becomes a worker."""

    def __init__(self) -> None:
        self._worker: Any = None

    def enter(self, entrance: dict[str, Any]) -> dict[str, Any]:
        """Facts about this worker, or {"error": why it cannot work}.

        entrance: comfyui, the folder; here, whether it is that of the same machine; node, which tells the
        pack; settings, ComfyUI's, pickled; environment; threads.
        """
        try:
            if self._worker is None:
                self._worker = self._enter(entrance)
            return self._worker.facts()
        except BaseException as error:  # ComfyUI may end the process where it cannot start, and is to say why
            return {"error": f"{type(error).__name__}: {error}"}

    def ask(self, what: str, *given: Any) -> dict[str, Any]:
        """{"answer": what the worker's method gives}, or {"error": what went wrong}. Exceptions are told in
        words: their classes need not exist on the other side.
        """
        try:
            return {"answer": getattr(self._worker, what)(*given)}
        except BaseException as error:  # an interruption is one
            return {"error": f"{type(error).__name__}: {error}"}

    def _enter(self, entrance: dict[str, Any]) -> Any:
        os.environ.update(entrance["environment"])
        sys.path.insert(0, str(self._comfyui(entrance)))
        sys.argv = ["main.py"]
        arguments = importlib.import_module("comfy.cli_args").args
        # Some are of ComfyUI's own classes, which this process had not before. They come with the call that
        # made this worker, from whoever may run code here anyway.
        settings = pickle.loads(entrance["settings"])
        for name in DIRECTORIES:
            if settings.get(name) and not os.path.isdir(settings[name]):
                settings[name] = None
        vars(arguments).update(settings)
        importlib.import_module("main")  # as ComfyUI starts, less its server: folders, memory, prestartup
        nodes: Any = importlib.import_module("nodes")
        listeners: Any = importlib.import_module("server").PromptServer

        class Silent(listeners):
            """For packs that add routes. Nobody listens."""

            def send_sync(self, event: Any, data: Any, sid: Any = None) -> None:
                pass

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        Silent(loop)
        loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False))
        found = nodes.NODE_CLASS_MAPPINGS.get(entrance["node"])
        if found is None:
            raise LookupError(
                f"the pack dizzydiff is not in the custom_nodes of {sys.path[0]}, or failed there"
            )
        pack = found.__module__.rpartition(".")[0].rpartition(".")[0]
        return importlib.import_module(f"{pack}.drafting.cluster.worker").Worker(entrance["threads"])

    @staticmethod
    def _comfyui(entrance: dict[str, Any]) -> Path:
        told = os.environ.get("COMFYUI_PATH", "")
        folder = Path(entrance["comfyui"] if entrance["here"] or not told else told)
        if not (folder / "main.py").is_file():
            raise FileNotFoundError(
                f"there is no ComfyUI at {folder}; set COMFYUI_PATH there before `ray start`"
            )
        return folder
