"""What is trained beside a frozen model: where it is put and how it begins."""
