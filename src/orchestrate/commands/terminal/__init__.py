"""Code shared by all commands: output, errors, progress and common options."""
