"""The places of this package, a module each, named by its kind; `PROFILE` is what a place is known by before
anything of it is loaded."""
