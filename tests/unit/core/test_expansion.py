"""Lines that become billions of values are refused before they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrate.core.expansion import Expands, require_bounded
from orchestrate.costing import rates
from orchestrate.errors import ConfigError, OrchestrateError
from orchestrate.spec import specfile

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{n}: &m{n}\n  <<: [*m{n - 1}, *m{n - 1}]\n" for n in range(1, 60))


@pytest.mark.parametrize("text", [LAUGHS, MERGES])
def test_a_spec_that_expands_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text(f"model: qwen3-8b\ntrain: t.jsonl\ntags: {{}}\n{text}")
    with pytest.raises(OrchestrateError) as told:
        specfile.load(path)
    assert "aliases expand" in "\n".join([told.value.message, *map(str, getattr(told.value, "errors", ()))])


def test_rates_that_expand_are_refused() -> None:
    with pytest.raises(ConfigError, match="aliases expand"):
        rates.parse(LAUGHS, "rates.yaml")
    with pytest.raises(ConfigError):
        rates.parse("a: &a [*a]", "rates.yaml")


def test_ordinary_aliases_stay() -> None:
    node = yaml.compose("a: &a {r: 16}\nb: *a\nc: [*a, *a]\n", Loader=yaml.SafeLoader)
    require_bounded(node)
    with pytest.raises(Expands):
        require_bounded(yaml.compose(LAUGHS, Loader=yaml.SafeLoader))
