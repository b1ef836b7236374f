"""Commands that advise, check, plan, quote, submit, queue and sweep."""
