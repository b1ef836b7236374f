"""Backends that train. `base` defines their interface, `registry` finds them, and each has its own module."""
