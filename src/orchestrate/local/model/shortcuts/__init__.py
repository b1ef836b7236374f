"""The engine's optimizations over the libraries, each with a check that the model supports it."""
