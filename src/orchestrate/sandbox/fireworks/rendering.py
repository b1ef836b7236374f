"""Render samples: what the trainer saw of the first rows (docs.fireworks.ai, "Debug SFT tokenization")."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrate.sandbox.host import Host
from orchestrate.sandbox.shared.rendering import encoded, tokenizer_of
from orchestrate.sandbox.uploads import read

MOST = 20


def samples(host: Host, path: Path) -> str:
    """JSON lines, one for each of the first rows."""
    tokenizer = tokenizer_of(host)
    rows = enumerate(example for example, _ in islice(read(path, host.taken), MOST))
    return "".join(json.dumps(_sample(tokenizer, n, example)) + "\n" for n, example in rows)


def _sample(tokenizer: Any, index: int, example: Any) -> dict[str, Any]:
    ids, learnt = encoded(tokenizer, example)
    share = 1 / (sum(learnt) or 1)  # the weights of a row come to 1
    weights = [share if on else 0.0 for on in learnt]
    return {
        "source_jsonl_row_index": index,
        "source_jsonl_line_number": index + 1,
        "split_index": 0,
        "worker_id": 0,
        "renderer": "chatml",
        "train_on_what": "all_assistant_messages",
        "token_ids": ids,
        "decoded_tokens": [str(tokenizer.decode([id], skip_special_tokens=False)) for id in ids],
        "token_weights": weights,
        "training_target_token_ids": ids[1:],
        "training_loss_weights": weights[1:],
    }
