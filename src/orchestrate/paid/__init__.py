"""Send requests that cost money. They all share the same journal, cost limit, retry policy and request
count."""
