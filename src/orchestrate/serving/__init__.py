"""Export, merge and serve a tuned model, and prove that the served model is the trained one.

These modules don't import torch. `orchestrate.local` loads weights in separate processes.
"""
