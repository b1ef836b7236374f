"""Functions for working with runs: prepare, submit, watch, evaluate and serve them. Each takes a
`Workspace`."""
