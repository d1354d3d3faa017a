# SPDX-License-Identifier: GPL-3.0-or-later
"""What dev.py is made of; nothing here is imported by the pack itself. Standard library only, but for
:mod:`.client`, :mod:`.inprocess`, :mod:`.pictures` and :mod:`.pretend_device`, which run in the environment.
In may come what several of dev.py, tests and benchmarks need.
"""
