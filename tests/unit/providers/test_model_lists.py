"""The hosts' lists of models as catalog records."""

from __future__ import annotations

from datetime import date

from orchestrate.providers.fireworks.responses import models_of as fireworks_models
from orchestrate.providers.together.responses import models_of as together_models


def test_together_names_a_model_as_it_is_tuned() -> None:
    rows = [
        {"id": "ml_1", "name": "Qwen/Qwen3.5-9B", "status": "SUPPORTED_MODEL_STATUS_SUPPORTED"},
        {"id": "meta-llama/Llama-3.3-70B-Instruct-Reference", "name": "meta-llama/Llama-3.3-70B-Instruct"},
        {"id": "ml_2", "name": "new/Model-1B", "status": "SUPPORTED_MODEL_STATUS_HIDDEN"},
        {},
    ]
    assert [(m.id, m.tunable) for m in together_models(rows)] == [
        ("Qwen/Qwen3.5-9B", "yes"),
        ("meta-llama/Llama-3.3-70B-Instruct-Reference", "yes"),
        ("new/Model-1B", "no"),
    ]


def test_fireworks_tells_limits_and_dates() -> None:
    name = "accounts/fireworks/models/x"
    rows = [
        {"name": name, "tunable": True, "rlTunable": True, "trainingContextLength": 32768},
        {
            "name": name,
            "baseModelDetails": {"tunable": True},
            "deprecationDate": {"year": 2027, "month": 2, "day": 1},
        },
        {"name": name, "tunable": False, "deprecationDate": "2027-02-01T00:00:00Z"},
        {"name": name, "deprecationDate": {"year": 0}},
        {"displayName": "no name"},
    ]
    first, second, third, fourth = fireworks_models(rows)
    assert (first.tunable, first.context, first.methods) == ("yes", (32768, 32768), ("sft", "dpo", "rft"))
    assert (second.tunable, second.methods, second.shutdown) == ("yes", ("sft", "dpo"), date(2027, 2, 1))
    assert (third.tunable, third.shutdown) == ("no", date(2027, 2, 1))
    assert (fourth.tunable, fourth.context, fourth.shutdown) == ("no", None, None)
