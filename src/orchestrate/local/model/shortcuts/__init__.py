"""What the engine does otherwise than the libraries, and the proof for each that the model bears it."""
