"""What the official client does in the life of a session, each result a line of JSON. A process of its
own runs it: the client leaves threads behind."""

from __future__ import annotations

import json
import sys
from typing import Any

import tinker
from tinker import types

# The client's futures have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


def say(what: str, value: Any) -> None:
    print(json.dumps({"what": what, "value": value}), flush=True)


def datum(ids: list[int], **inputs: Any) -> types.Datum:
    given: Any = {"target_tokens": ids[1:], **inputs}
    return types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=given)


def refused(what: str, ask: Any) -> None:
    try:
        ask()
    except Exception as error:
        say(what, type(error).__name__)
    else:
        say(what, None)


def main(url: str, model: str) -> None:
    service: Any = tinker.ServiceClient(base_url=url, api_key="tml-key-of-the-test")
    training = service.create_lora_training_client(base_model=model, rank=8, seed=1).result()
    ids: list[int] = training.get_tokenizer()("hello there, how are you today? I am fine")["input_ids"]
    rows = [datum(ids, weights=[1.0] * (len(ids) - 1)), datum(ids[:6], weights=[1.0] * 5)]
    adam = types.AdamParams(learning_rate=5e-3)
    losses: list[float] = []
    for _ in range(3):  # both are sent before the first is answered
        done, step = training.forward_backward(rows, "cross_entropy"), training.optim_step(adam)
        losses.append(done.result().metrics["loss:sum"])
        step.result()
    say("losses", losses)
    prompt = types.ModelInput.from_ints(ids[:5])
    sampling = training.save_weights_and_get_sampling_client().result()
    drawing = types.SamplingParams(max_tokens=6, seed=1, stop=[])
    got = sampling.sample(
        prompt,
        num_samples=2,
        sampling_params=drawing,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
    ).result()
    say("lengths", [[len(s.tokens), len(s.logprobs)] for s in got.sequences])
    forward = training.forward([datum(ids[:6])], "cross_entropy").result()
    say("trained", list(forward.loss_fn_outputs[0]["logprobs"].data)[:4])
    say("prompt", sampling.compute_logprobs(prompt).result()[1:])
    path = training.save_state("one").result().path
    again = service.create_training_client_from_state_with_optimizer(path).result()
    last = [
        client.forward(rows, "cross_entropy").result().metrics["loss:sum"] for client in (training, again)
    ]
    say("loaded", last)
    kept = training.save_weights_for_sampler("kept").result().path
    same = [
        client.sample(prompt, num_samples=1, sampling_params=drawing).result().sequences[0].tokens
        for client in (sampling, service.create_sampling_client(model_path=kept).result())
    ]
    say("kept", [list(tokens) for tokens in same])
    apart = {"logprobs": [-1.0] * (len(ids) - 1), "advantages": [0.5] * (len(ids) - 1)}
    for loss in ("importance_sampling", "ppo", "cispo", "dro", "gspo"):
        say(loss, training.forward_backward([datum(ids, **apart)], loss).result().metrics["loss:sum"])
    refused(
        "stable_reinforce",
        lambda: training.forward_backward([datum(ids, **apart)], "stable_reinforce").result(),
    )
    refused("twice", lambda: training.save_state("one").result())
    refused("token", lambda: training.forward_backward([datum([1, 99_999])], "cross_entropy").result())
    custom = training.forward_backward_custom(
        rows, lambda data, found: (-sum(p.mean() for p in found), {"x": 1.0})
    )
    say("custom", custom.result().metrics["x"])
    say("norm", training.optim_step(adam).result().metrics["grad_norm:mean"])
    service.close("success").result()


if __name__ == "__main__":
    main(*sys.argv[1:])
