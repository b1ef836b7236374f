"""What all commands share: where output goes, how errors and progress look, and the options of several."""
