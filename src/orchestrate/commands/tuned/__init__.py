"""A tuned model in use: chat, files, exports, and GPUs that serve it."""
