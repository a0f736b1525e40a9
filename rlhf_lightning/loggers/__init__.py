"""Loggers whose record of a run stays one record when the run is resumed.

Lightning's own loggers may be named in ``logger.*`` too; theirs log the steps between a checkpoint and a kill twice.
"""

from rlhf_lightning.loggers.csv_file import CSVLogger, read_metrics
from rlhf_lightning.loggers.mlflow_database import MLFlowLogger
from rlhf_lightning.loggers.tensorboard_events import TensorBoardLogger
from rlhf_lightning.loggers.wandb_run import WandbLogger

__all__ = ["CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger", "read_metrics"]
