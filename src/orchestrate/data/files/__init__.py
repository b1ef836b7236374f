"""Reading and writing files: paths, URLs and folders in, byte ranges and records out."""
