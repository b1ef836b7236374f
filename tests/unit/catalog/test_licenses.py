from __future__ import annotations

from pathlib import Path

import pytest

from orchestrate.catalog import all_models
from orchestrate.catalog.models import license, license_of
from orchestrate.serving.agreements import LicenseNotAccepted, agreed, require

FREE = {"apache-2.0", "mit"}


def test_each_license_of_the_catalog_asks_for_something_or_is_known_not_to() -> None:
    for model in all_models():
        if model.license is not None:
            found = license_of(model.name)
            assert found is not None and bool(found.asks) != (found.id in FREE), model.license


@pytest.mark.parametrize(
    ("id", "attribution", "limit"),
    [
        ("llama3.1", 'Built with Llama"', "700 million"),
        ("llama3.3", 'Built with Llama"', "700 million"),
        ("qwen", "Built with Qwen", "100 million"),
        ("modified-mit", "display the model's name", "100 million"),
    ],
)
def test_attribution_and_user_limits_are_asked_about(id: str, attribution: str, limit: str) -> None:
    asks = " ".join(license(id).asks)
    assert attribution in asks and limit in asks


def test_what_is_asked_is_agreed_to_once_in_a_home_folder(tmp_path: Path) -> None:
    gemma = license("gemma")
    with pytest.raises(LicenseNotAccepted, match="use restrictions") as raised:
        require(gemma, "gemma-3-4b", tmp_path, (), "me@here")
    assert raised.value.fix is not None and "--accept-license gemma" in raised.value.fix
    assert not agreed(gemma, tmp_path)
    require(gemma, "gemma-3-4b", tmp_path, ["gemma"], "me@here")
    require(gemma, "gemma-3-4b", tmp_path, (), "me@here")
    assert agreed(gemma, tmp_path) and not agreed(license("llama4"), tmp_path)
    assert (tmp_path / "licences.json").is_file(), "the name that home folders have it by"
    require(None, "own", tmp_path, (), "me")
    require(license("mit"), "own", tmp_path, (), "me")
