"""The places of this package, one module each, named by its kind. `PROFILE` describes a place before
anything of it is loaded."""
