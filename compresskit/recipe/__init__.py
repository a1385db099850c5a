"""Recipes: strict YAML or JSON, or plain Python, in; a checked list of steps out."""

from compresskit.recipe.gates import Gate, Measured, Verdict, check_gates, parse_gate, parse_gate_argument
from compresskit.recipe.schema import Calibration, Evaluation, Export, OnnxExport, Recipe, Step, TrainingData

__all__ = [
    "Calibration",
    "Evaluation",
    "Export",
    "Gate",
    "Measured",
    "OnnxExport",
    "Recipe",
    "Step",
    "TrainingData",
    "Verdict",
    "check_gates",
    "parse_gate",
    "parse_gate_argument",
]
