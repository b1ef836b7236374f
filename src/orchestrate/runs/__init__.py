"""What can be done with runs, as functions of a Workspace: prepare, submit, follow, evaluate, serve."""
