# SPDX-License-Identifier: GPL-3.0-or-later
"""The doors of the pack: V3 node classes."""

from .distill import DistillGuidance
from .drafting import DraftDevices, DraftRefineKSampler, DraftRefineSampler
from .stability import StabilityGrid, StabilityProfile, StabilitySampler
from .students import GuidanceSweep, LoadPipeline, LoadStudent, StudentGuidance, StudentSampler

NODE_CLASSES = [
    LoadStudent,
    LoadPipeline,
    StudentGuidance,
    GuidanceSweep,
    StudentSampler,
    DistillGuidance,
    DraftDevices,
    DraftRefineSampler,
    DraftRefineKSampler,
    StabilityProfile,
    StabilityGrid,
    StabilitySampler,
]
