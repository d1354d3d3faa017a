# SPDX-License-Identifier: GPL-3.0-or-later
"""The doors of the pack: V3 node classes, one file a feature.

A node says its inputs, reads them, calls one function and wraps what it gives. In may come words for users,
values that features pass to one another, and pictures of results; mathematics belongs to a feature.
"""

from .cluster import DraftCluster
from .compare import Compare
from .distill import DistillGuidance
from .drafting import DraftDevices, DraftRefineKSampler, DraftRefineSampler
from .export import ExportLoRA
from .guidance import GuidanceSchedule, GuidanceSweep, StudentGuidance
from .noise import PoissonNoise, SpinNoise
from .sigmas import CompareSigmas, StepsNeeded
from .stability import StabilityGrid, StabilityProfile, StabilitySampler
from .students import LoadPipeline, LoadStudent, StudentSampler
from .watch import WatchStability

NODE_CLASSES = [
    LoadStudent,
    LoadPipeline,
    StudentGuidance,
    GuidanceSweep,
    GuidanceSchedule,
    StudentSampler,
    DistillGuidance,
    ExportLoRA,
    DraftDevices,
    DraftCluster,
    DraftRefineSampler,
    DraftRefineKSampler,
    StabilityProfile,
    StabilityGrid,
    StabilitySampler,
    WatchStability,
    CompareSigmas,
    StepsNeeded,
    Compare,
    SpinNoise,
    PoissonNoise,
]
