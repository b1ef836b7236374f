"""The row formats that are known, and what a row of each becomes: a canonical example."""
