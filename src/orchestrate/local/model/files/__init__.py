"""Where the files of a model are and what they hold. Torch-free."""
