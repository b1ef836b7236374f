"""Operations on runs, as functions that take a `Workspace`: prepare, submit, follow, evaluate and serve."""
