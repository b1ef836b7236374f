"""The canonical example, what is looked at in it, and the problems that are reported of it."""
