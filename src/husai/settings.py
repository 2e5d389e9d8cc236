"""Kedro's settings for this project: its hooks, catalog and configuration loader."""

from __future__ import annotations

import warnings

from husai.hooks.catalog import NamedCatalog
from husai.hooks.checks import StudyChecks
from husai.hooks.ending import RunEnding
from husai.hooks.errors import PlainErrors
from husai.hooks.life import SignOfLife
from husai.hooks.lineage import Lineage
from husai.hooks.origin import RunOrigin
from husai.hooks.stages import StudyStages
from husai.hooks.study import NamedStudy, StudyConfigLoader
from husai.studies import data_folder
from husai.tracking.hook import MlflowHook

# Kedro calls a function that OmegaConf will rename; users can do nothing about it
warnings.filterwarnings("ignore", message=r"register_new_resolver\(\) is deprecated")


lineage = Lineage()

HOOKS = (
    StudyStages(),
    StudyChecks(),
    RunOrigin(),
    lineage,
    MlflowHook(),
    NamedStudy(),
    RunEnding(),
    SignOfLife(),
    PlainErrors(lineage),
)

DATA_CATALOG_CLASS = NamedCatalog

CONFIG_LOADER_CLASS = StudyConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**"], "study": ["study*"]},
    # an environment changes only the fields that it names; the rest of a group is that of base
    "merge_strategy": {"parameters": "soft", "mlflow": "soft"},
    "custom_resolvers": {"data_dir": data_folder},
}
