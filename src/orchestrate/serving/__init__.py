"""A tuned model taken into use: exported, merged, served, and proved to be what was trained.

Nothing here imports torch: what loads weights is asked of `orchestrate.local`, in processes of its own.
"""
