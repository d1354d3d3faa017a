# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import sys
from pathlib import Path

import pytest

from devtools.process import ProgramFailed, SetupFailed, environment, printed, run_logged


def test_a_failure_names_the_command_its_status_its_log_and_what_the_log_ends_with(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "step.log"
    with pytest.raises(SetupFailed) as failure:
        run_logged([sys.executable, "-c", "print('no space left'); raise SystemExit(3)"], log)
    message = str(failure.value)
    assert "status 3" in message
    assert sys.executable in message
    assert str(log) in message
    assert "no space left" in message


def test_each_line_is_shown_as_it_comes_and_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    run_logged([sys.executable, "-c", "print('one'); print('two')"], tmp_path / "log", lines.append)
    assert lines == ["one", "two"]
    assert (tmp_path / "log").read_text(encoding="utf-8").split() == lines


def test_child_processes_stay_offline_and_find_no_other_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "elsewhere")
    settings = environment({"EXTRA": "1"})
    assert not {"PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV"} & settings.keys()
    assert (settings["HF_HUB_OFFLINE"], settings["DO_NOT_TRACK"], settings["EXTRA"]) == ("1", "1", "1")


def test_what_a_program_prints_is_given_back_and_a_failure_tells_all(tmp_path: Path) -> None:
    assert printed([sys.executable, "-c", "print('Grüße')"], tmp_path, {"PYTHONUTF8": "1"}) == "Grüße\n"
    said = "import sys; print('half done'); print('no space', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ProgramFailed, match=r"(?s)ended with 3:.*half done.*no space"):
        printed([sys.executable, "-c", said], tmp_path)
