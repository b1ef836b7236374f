"""What every room uses and no room is about: files, packages, progress, days, amounts, processes."""
