# SPDX-License-Identifier: GPL-3.0-or-later
"""Draft Cluster: workers in processes of their own, here or on other machines, by Ray.

A worker is a ComfyUI without a page. It runs the graph of the prompt up to the very sampler that draws the
picture here, and there answers model calls instead of sampling. So whatever loads or changes the model is
there too, and only the graph, latents and predictions travel.
"""
