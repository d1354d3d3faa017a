# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Chromium on the real front end, one for all browser tests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from devtools import browser
from devtools.server import Server

from .front_end import FLAGS, FrontEnd


@pytest.fixture(scope="module")  # while it lives, its event loop bars every other from this thread
def loaded_page(comfy_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    """The front end, loaded in a browser that knows nothing, past the greeting of a first visit."""
    chromium = browser.find()
    if chromium is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"The browser tests cannot run: {browser.MISSING}"
        )
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=chromium,
            args=FLAGS,
            viewport={"width": 1600, "height": 900},
        )
        context.set_default_timeout(30_000)
        front_end = FrontEnd(context.pages[0])
        front_end.open(comfy_server.address)
        front_end.page.get_by_test_id("template-workflows-content").wait_for()
        yield front_end
        context.close()


@pytest.fixture
def front_end(loaded_page: FrontEnd, root: Path, request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    """The page with an empty graph. Afterwards its picture is kept, and no complaint may have to do with the
    pack.
    """
    loaded_page.blank()
    yield loaded_page
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    loaded_page.page.screenshot(path=root / ".dev" / "screenshots" / f"{name}.png")
    problems, loaded_page.problems[:] = list(loaded_page.problems), []
    assert not problems
