"""Check everything, run the steps, prove the result."""

from __future__ import annotations

from compresskit.pipeline.inspection import Inspection, inspect
from compresskit.pipeline.options import Listener, Options
from compresskit.pipeline.plan import Plan, load_plan, save_plan
from compresskit.pipeline.result import Result
from compresskit.pipeline.run import apply, plan
from compresskit.pipeline.verification import Verification, verify

__all__ = [
    "Inspection",
    "Listener",
    "Options",
    "Plan",
    "Result",
    "Verification",
    "apply",
    "inspect",
    "load_plan",
    "plan",
    "save_plan",
    "verify",
]
