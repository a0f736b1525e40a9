"""One LightningModule per data flow."""

from rlhf_lightning.methods.base import AlignmentModule
from rlhf_lightning.methods.judged import Judged
from rlhf_lightning.methods.preference import Preference
from rlhf_lightning.methods.ranking import Ranked
from rlhf_lightning.methods.supervised import Supervised
from rlhf_lightning.methods.unpaired import Unpaired

__all__ = ["AlignmentModule", "Judged", "Preference", "Ranked", "Supervised", "Unpaired"]
