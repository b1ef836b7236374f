"""What the gateway keeps in the store: its clients' keys, files and jobs, and who did what."""
