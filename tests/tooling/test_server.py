# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting and stopping, with a small program in ComfyUI's place; tests/e2e starts the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from devtools.server import Server, ServerFailed, running

ANSWERS = """
import argparse, http.server
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.HTTPServer(("127.0.0.1", parser.parse_known_args()[0].port), Handler).serve_forever()
"""
BREAKS = "raise SystemExit('the database is broken')"
HANGS = "import time; print('still loading', flush=True); time.sleep(600)"


def start(tmp_path: Path, program: str, timeout: float = 60.0):
    (tmp_path / "main.py").write_text(program, encoding="utf-8")
    return running(Path(sys.executable), tmp_path, tmp_path, tmp_path / "output", tmp_path / "log", timeout)


def test_it_is_stopped_when_the_work_fails(tmp_path: Path) -> None:
    servers: list[Server] = []
    with pytest.raises(KeyboardInterrupt), start(tmp_path, ANSWERS) as server:
        servers.append(server)
        assert server.request("/system_stats") == {}
        assert server.process.poll() is None
        raise KeyboardInterrupt
    assert servers[0].process.poll() is not None


HISTORY = """
import argparse, http.server, json
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
asked = []
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, told):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(told).encode())
    def do_GET(self):
        asked.append(self.path)
        self.answer({"a1": {"asked": self.path}} if len(asked) > 4 and "a1" in self.path else {})
    def do_POST(self):
        self.answer({"prompt_id": "a1"})
http.server.HTTPServer(("127.0.0.1", parser.parse_known_args()[0].port), Handler).serve_forever()
"""


def test_a_prompt_is_waited_for_until_it_is_in_the_history(tmp_path: Path) -> None:
    with start(tmp_path, HISTORY) as server:
        assert server.run({}) == {"asked": "/history/a1"}
        with pytest.raises(TimeoutError, match=r"another.*log"):
            server.finished("another", timeout=0.1)


@pytest.mark.parametrize(
    ("program", "words"),
    [(BREAKS, "the database is broken"), (HANGS, "still loading")],
    ids=["breaks", "hangs"],
)
def test_a_server_that_does_not_start_says_so_with_its_log(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    with pytest.raises(ServerFailed) as failure, start(tmp_path, program, timeout=5.0):
        pass
    assert words in str(failure.value)
    assert str(tmp_path / "log") in str(failure.value)
    assert [process.poll() is not None for process in started] == [True]
