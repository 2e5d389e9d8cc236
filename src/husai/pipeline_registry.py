"""Registers the project's pipelines for Kedro."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from kedro.pipeline import Pipeline

from husai import pipelines as package
from husai.hooks.selection import NamedPipeline
from husai.hooks.stages import STUDY


def register_pipelines() -> dict[str, Pipeline]:
    """Return every pipeline of the package by name; the default is the whole home study."""
    # Kedro's find_pipelines omits pipelines that were not asked for, but the checks need all of
    # them to know which parameters exist; none of them is slow to import
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg]
    found: dict[str, Pipeline] = {
        name: NamedPipeline(import_module(f"{package.__name__}.{name}").create_pipeline().nodes)
        for name in names
    }
    # all read the output of feature_group, which runs once when they run together
    group = found.pop("feature_group")
    for name in ("consensus", "feature_pages", "language_function"):
        found[name] = group + found[name]
    found["__default__"] = sum((found[name] for name in STUDY), Pipeline([]))
    return found
