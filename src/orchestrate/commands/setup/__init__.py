"""Getting ready: files to begin with, keys, this machine, schemas."""
