"""What single chat completions cost, at the public prices of the package `genai-prices`."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal


def completion_price(model: str, base_url: str | None = None) -> Callable[[int, int], Decimal] | None:
    """US dollars for (prompt tokens, completion tokens) of a model as its host names it; `None` when the
    price is not known. `base_url` tells the host where several offer the model."""
    from genai_prices import Usage, calc_price

    def price(prompt: int, completion: int, *, url: str | None) -> Decimal:
        usage = Usage(input_tokens=prompt, output_tokens=completion)
        return calc_price(usage, model_ref=model, provider_api_url=url).total_price

    for url in dict.fromkeys((base_url, None)):
        try:
            price(1, 1, url=url)
        except LookupError:
            continue
        return lambda prompt, completion, url=url: price(prompt, completion, url=url)
    return None
