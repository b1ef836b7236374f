"""What the engine does differently from the libraries, and the check for each that the model supports it."""
