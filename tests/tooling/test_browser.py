# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the browser of the browser tests comes from, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from devtools import browser
from devtools.process import SetupFailed


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with apt-get and no browser; the folder is its PATH."""
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0, raising=False)
    program(tmp_path / "apt-get")
    return tmp_path


def program(path: Path) -> None:
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_browser_that_is_named_wins(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "chromium")
    assert browser.provide(bare / "log") == bare / "chromium"
    monkeypatch.setenv("CHROMIUM", "/opt/another/chrome")
    assert browser.provide(bare / "log") == Path("/opt/another/chrome")


def test_apt_installs_it_where_we_may(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        browser,
        "run_logged",
        lambda command, log: program(bare / "chromium") if "install" in command else None,
    )
    assert browser.provide(bare / "log") == bare / "chromium"


def test_a_failed_installation_is_said_and_ends_nothing(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], log: Path) -> None:
        raise SetupFailed("no network")

    monkeypatch.setattr(browser, "run_logged", fail)
    assert browser.provide(bare / "log") is None
    assert "no network" in capsys.readouterr().out


def test_nothing_is_installed_for_another_user(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr(browser, "run_logged", lambda command, log: pytest.fail("tried to install"))
    assert browser.provide(bare / "log") is None
