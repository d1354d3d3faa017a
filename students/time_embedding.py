# SPDX-License-Identifier: GPL-3.0-or-later
"""Where guidance enters a network that was made without it: C e(w) joins the embedding of time (Meng et al.
2023, section 3.1).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


@contextlib.contextmanager
def guided_time(network: nn.Module, layer: str, addition: Tensor) -> Iterator[None]:
    """For the calls inside, the time layer's input is t_emb + C e(w). addition: [B, F]."""
    hook = network.get_submodule(layer).register_forward_pre_hook(
        lambda module, inputs: (inputs[0] + addition.to(inputs[0]), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()
