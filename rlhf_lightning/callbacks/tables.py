"""Tables of text in the loggers that support them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from rlhf_lightning import loggers


def log_table(logger: Logger, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Log rows with the same keys as a table; loggers without tables (CSV) are skipped."""
    if not rows:
        return
    columns = list(rows[0])
    if isinstance(logger, loggers.WandbLogger):
        logger.log_rows(name, columns, [list(row.values()) for row in rows], step)
    elif isinstance(logger, WandbLogger):
        # The step is a column: W&B refuses decreasing steps, and a table is written along with the step's metrics.
        logger.log_table(name, columns=columns, data=[list(row.values()) for row in rows])
    elif isinstance(logger, MLFlowLogger):
        data = {column: [row[column] for row in rows] for column in columns}
        logger.experiment.log_table(logger.run_id, data=data, artifact_file=f"{name}/step_{step:08d}.json")
    elif isinstance(logger, loggers.TensorBoardLogger):
        logger.log_text(name, markdown(columns, rows), step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, markdown(columns, rows), step)


def markdown(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a table in Markdown, which TensorBoard renders."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "<br>")
