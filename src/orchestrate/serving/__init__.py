"""Put a tuned model to use: export, merge and serve it, and prove that it is what was trained.

Nothing here imports torch. Work that loads weights is done by `orchestrate.local`, in separate processes.
"""
