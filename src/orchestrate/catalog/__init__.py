"""Canonical model names and their ids on each backend, from `models.yaml`."""

from orchestrate.catalog.models import (
    HostModel,
    Model,
    all_models,
    alternatives,
    closest_closed,
    comparison,
    ended_method,
    find,
    known_hosts,
    like,
    lookup,
    search,
    shutdown_warning,
    starters,
    trained_on,
)
from orchestrate.catalog.resolve import CatalogChange, ModelOnHost, differences, resolve, usual_length

__all__ = [
    "CatalogChange",
    "differences",
    "known_hosts",
    "HostModel",
    "Model",
    "ModelOnHost",
    "all_models",
    "alternatives",
    "closest_closed",
    "ended_method",
    "comparison",
    "find",
    "like",
    "lookup",
    "resolve",
    "usual_length",
    "search",
    "shutdown_warning",
    "trained_on",
    "starters",
]
