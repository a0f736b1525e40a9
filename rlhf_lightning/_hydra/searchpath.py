"""Lets every Hydra application of the environment use our config groups: ``defaults: [method: ipo]``.

Hydra discovers it by way of ``hydra_plugins/rlhf_lightning_searchpath.py``, which the wheel installs (``plugin.py``).
"""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from rlhf_lightning.conf_dir import conf_dir

PROVIDER = "rlhf-lightning"


class RlhfLightningSearchPath(SearchPathPlugin):
    """Adds our folder last, so that an application's own files win; the folders of ``RLHF_CONF`` come first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra when it sets up an application."""
        packaged = str(conf_dir())
        if all((entry.path or "").removeprefix("file://") != packaged for entry in search_path.get_path()):
            search_path.append(PROVIDER, f"file://{packaged}")
        for folder in reversed([entry for entry in os.environ.get("RLHF_CONF", "").split(os.pathsep) if entry]):
            search_path.prepend("RLHF_CONF", f"file://{Path(folder).expanduser().resolve()}")
