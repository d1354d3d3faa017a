# SPDX-License-Identifier: GPL-3.0-or-later
"""What users see in their language. English is what the nodes themselves say; locales/en only names their
categories.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from devtools.server import Server

LANGUAGES = ["zh"]
CHINESE = re.compile("[一-鿿]")
SAME_IN_CHINESE = {"CFG", "CLIP", "VAE", "Latent", "Sigmas", "eta"}


def texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for each in value.values() for text in texts(each)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_and_socket_is_translated(language: str, comfy_server: Server) -> None:
    translated = comfy_server.request("/i18n")[language]["nodeDefs"]
    for kind, node in comfy_server.request("/object_info").items():
        if not kind.startswith("DizzyDiff"):
            continue
        sockets = {name for group in ("required", "optional") for name in node["input"].get(group, {})}
        ours = translated[kind]
        assert ours["display_name"] and ours["description"]
        assert ours["inputs"].keys() == sockets, kind
        assert ours["outputs"].keys() == {str(i) for i in range(len(node["output"]))}, kind
        assert all(
            {"name", "tooltip"} == each.keys() and each["tooltip"]
            for each in (*ours["inputs"].values(), *ours["outputs"].values())
        )


def test_the_chinese_texts_are_chinese(root: Path) -> None:
    for file in (root / "locales" / "zh").iterdir():
        told = texts(json.loads(file.read_text(encoding="utf-8")))
        assert not [
            text for text in told if not CHINESE.search(text) and text not in SAME_IN_CHINESE | {"DizzyDiff"}
        ]


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_every_category_has_a_name(language: str, comfy_server: Server) -> None:
    named = comfy_server.request("/i18n")[language]["nodeCategories"]
    categories = {
        node["category"]
        for node in comfy_server.request("/object_info").values()
        if node["category"].startswith("DizzyDiff")
    }
    assert {part for category in categories for part in category.split("/")} <= named.keys()
