"""A spec sent to a backend step by step, translated as it is for a submit."""

from __future__ import annotations

from orchestrate.data import TrainingData
from orchestrate.providers.base import EstimatesPrice, Progress, Provider, capability
from orchestrate.spec import JobSpec
from orchestrate.types import JobHandle, Quote, RemoteDataset


def upload(
    provider: Provider, spec: JobSpec, data: TrainingData, *, progress: Progress | None = None
) -> RemoteDataset:
    return provider.upload(spec, data, provider.translate(spec), progress=progress)


def live_price(provider: Provider, spec: JobSpec, remote: RemoteDataset) -> Quote:
    return capability(provider, EstimatesPrice).live_price(spec, remote, provider.translate(spec))


def create(provider: Provider, spec: JobSpec, remote: RemoteDataset, ref: str) -> JobHandle:
    return provider.create(spec, remote, provider.translate(spec), ref)
