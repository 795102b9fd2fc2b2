"""How far from the datasheet things really are: factors on the roofline's terms, and where each comes from.

A factor says how many times longer a term takes than the datasheet has it: 1.25 on ``linear.memory`` means that
products with matrices reach 80 % of the memory's bandwidth. Factors are products of effects, from the general to the
particular::

    datasheet → architecture family and arithmetic (kernel tables) → engine → engine's version → this engine's own steps

An effect is kept as a logarithm, with the name of what it belongs to: ``engine:vllm,version:0.12.0``. What was never
seen has no effect, so an unknown engine on an unknown device gets the family's figures, an unknown family the general
ones. ``calibration_for`` adds the shipped effects up, ``fit`` finds more of them from measurements, ``OnlineFit``
follows the steps of a running engine.
"""

from tokenmill.perf.calibrate.effects import Calibration, Effects, calibration_for, keys_of, shipped_effects
from tokenmill.perf.calibrate.files import load_effects, save_effects
from tokenmill.perf.calibrate.online import OnlineFit

__all__ = [
    "Calibration",
    "Effects",
    "OnlineFit",
    "calibration_for",
    "keys_of",
    "load_effects",
    "save_effects",
    "shipped_effects",
]
