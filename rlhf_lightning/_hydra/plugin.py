"""The file that the wheel installs as ``hydra_plugins/rlhf_lightning_searchpath.py``, where Hydra discovers it.

A file of its own: hatchling moves what it installs elsewhere, and the package needs the class at home too.
"""

from rlhf_lightning._hydra.searchpath import RlhfLightningSearchPath

__all__ = ["RlhfLightningSearchPath"]
