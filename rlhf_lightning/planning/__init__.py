"""Cost of a job before it starts: memory of a process by part, tokens a second, the strategies that fit.

Nothing here reads weights: shapes come from a model on torch's meta device, costs from counting. The rates that turn
operations into seconds are given, or measured on this processor.
"""

from rlhf_lightning.planning.cost import Cost, plan
from rlhf_lightning.planning.job import Draws, Job, Strategy
from rlhf_lightning.planning.rates import Rates, measured_rates
from rlhf_lightning.planning.shape import ModelShape, shape_of

__all__ = ["Cost", "Draws", "Job", "ModelShape", "Rates", "Strategy", "measured_rates", "plan", "shape_of"]
