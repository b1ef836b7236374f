"""Code shared by all commands: where output goes, how errors and progress look, and the options of
several."""
