# SPDX-License-Identifier: GPL-3.0-or-later
"""The example workflows on models that are downloaded: made from one table of settings."""
