"""Operations on runs, as functions of a Workspace: prepare, submit, follow, evaluate, serve."""
