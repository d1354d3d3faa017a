#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try and develop DizzyDiff from a clone: sets up what it needs, then does it. Needs Python 3.11+ and a
package index.

ComfyUI is COMFYUI_PATH where that is set, else the one whose custom_nodes folder holds this clone, else a
release downloaded into .dev/: 0.30.0, or the one that COMFYUI_RELEASE names (0.27.0, the oldest that runs the
pack). Packages go into .venv here; the environment of a ComfyUI you already have is never changed.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"dev.py needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}).")

import argparse
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # for devtools; no part of ComfyUI is imported into this process

from devtools import browser
from devtools.comfyui import make_base
from devtools.environment import Workshop, set_up
from devtools.process import SetupFailed, environment, say
from devtools.server import ServerFailed, running

# Two processes of one thread each keep two cores busy where one process of two threads does not.
# Files in the order of tests/conftest.py: by their number of tests, a long one of few would be left for one.
IN_TWO = ("--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder")


def python_in(workshop: Workshop, *arguments: str, cwd: Path = ROOT, threads: int | None = None) -> int:
    """Exit status of the environment's Python, with the clone's root off its path. ``threads`` limits what
    torch takes in it and in what it starts.
    """
    settings = {"COMFYUI_PATH": str(workshop.comfyui.path), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")}
    if threads is not None:
        settings["OMP_NUM_THREADS"] = str(threads)
    return subprocess.call([str(workshop.python), "-P", *arguments], cwd=cwd, env=environment(settings))


def demo(workshop: Workshop) -> int:
    """Run workflows/guided_student.json in a real ComfyUI; pictures go to output/."""
    base, output = make_base(ROOT, workshop.scratch / "base"), ROOT / "output"
    say("starting ComfyUI")
    with running(
        workshop.python, workshop.comfyui.path, base, output, workshop.scratch / "logs" / "demo.log"
    ) as server:
        say(f"ComfyUI answers at {server.address}; queueing workflows/guided_student.json")
        workflow = ROOT / "workflows" / "api" / "guided_student.json"
        return python_in(
            workshop, str(ROOT / "devtools" / "client.py"), server.address, str(workflow), str(output)
        )


def test(workshop: Workshop, arguments: list[str]) -> int:
    """ruff (rules and format), mypy and pytest; every one runs, and any failure fails the whole."""
    chromium = browser.provide(workshop.scratch / "logs" / "chromium.log")
    packages = make_base(ROOT, workshop.scratch / "base") / "custom_nodes"
    checks = {
        "ruff": lambda: python_in(workshop, "-m", "ruff", "check", "."),
        "ruff format": lambda: python_in(workshop, "-m", "ruff", "format", "--check", "."),
        "mypy": lambda: python_in(
            workshop, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), cwd=packages
        ),
        "pytest": lambda: python_in(workshop, "-m", "pytest", *IN_TWO, *arguments, threads=1),
    }
    failed = []
    for name, check in checks.items():
        say(name)
        if check() != 0:
            failed.append(name)
    say(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    if chromium is None:
        say(f"THE BROWSER TESTS DID NOT RUN: {browser.MISSING}")
    return 1 if failed else 0


def serve(workshop: Workshop) -> int:
    """Leave ComfyUI running for the browser until Ctrl-C."""
    base, output = make_base(ROOT, workshop.scratch / "base"), ROOT / "output"
    log = workshop.scratch / "logs" / "serve.log"
    say("starting ComfyUI")
    with running(workshop.python, workshop.comfyui.path, base, output, log) as server:
        say(f"ComfyUI runs at {server.address} (Ctrl-C stops it; log: {log})")
        return server.process.wait()


def pictures(workshop: Workshop) -> int:
    """Draw icon and banner (assets/), and run every workflow for its thumbnail (workflows/*.jpg)."""
    base, output = make_base(ROOT, workshop.scratch / "base"), ROOT / "output"
    with running(
        workshop.python, workshop.comfyui.path, base, output, workshop.scratch / "logs" / "pictures.log"
    ) as server:
        folders = ["--output", str(output), "--temp", str(base / "temp")]
        return python_in(
            workshop, str(ROOT / "devtools" / "pictures.py"), server.address, str(ROOT), *folders
        )


def templates(workshop: Workshop) -> int:
    """Write workflows/with_* and their table in docs/models.md, from devtools/templates/presets.py."""
    base = make_base(ROOT, workshop.scratch / "base")
    log = workshop.scratch / "logs" / "templates.log"
    with running(workshop.python, workshop.comfyui.path, base, ROOT / "output", log) as server:
        return python_in(
            workshop, str(ROOT / "devtools" / "templates" / "__main__.py"), server.address, str(ROOT)
        )


def bench(workshop: Workshop, name: str, quick: bool, json_file: Path) -> int:
    """Run benchmarks/NAME.py and write its rows."""
    runner = [str(ROOT / "benchmarks" / "__main__.py"), name, "--json", str(json_file.resolve())]
    return python_in(workshop, *runner, *(["--quick"] if quick else []))


def tiny(workshop: Workshop, arguments: list[str]) -> int:
    """Make the embedded pipeline of tiny/ from nothing (hours on a CPU); goes on where it stopped."""
    return python_in(workshop, str(ROOT / "tiny" / "__main__.py"), *arguments)


def distill(workshop: Workshop, arguments: list[str]) -> int:
    """Train a guided student of your own model, without a browser; goes on where it stopped. `distill --help`
    says how.
    """
    return python_in(workshop, str(ROOT / "students" / "distill" / "__main__.py"), *arguments, cwd=Path.cwd())


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="make the environment, do nothing else")
    commands.add_parser("demo", help=demo.__doc__)
    commands.add_parser("test", help=f"{test.__doc__} Further arguments go to pytest.")
    commands.add_parser("serve", help=serve.__doc__)
    commands.add_parser("pictures", help=pictures.__doc__)
    commands.add_parser("templates", help=templates.__doc__)
    benchmark = commands.add_parser("bench", help=bench.__doc__)
    benchmark.add_argument("name", metavar="NAME")
    benchmark.add_argument("--quick", action="store_true", help="fewer repeats, smaller sizes")
    benchmark.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the rows go")
    commands.add_parser("tiny", help=f"{tiny.__doc__} Further arguments go to the recipe.")
    commands.add_parser("distill", help=distill.__doc__, add_help=False)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("test", "tiny", "distill"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return options, rest


def main(arguments: list[str]) -> int:
    options, rest = parse(arguments)
    # A plain `kill` leaves through the same doors as Ctrl-C, which stop the server.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        workshop = set_up(ROOT)
        match options.command:
            case "demo":
                return demo(workshop)
            case "test":
                return test(workshop, rest)
            case "serve":
                return serve(workshop)
            case "pictures":
                return pictures(workshop)
            case "templates":
                return templates(workshop)
            case "bench":
                return bench(workshop, options.name, options.quick, options.json)
            case "tiny":
                return tiny(workshop, rest)
            case "distill":
                return distill(workshop, rest)
        return 0
    except (SetupFailed, ServerFailed) as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
