"""Settings, keys and addresses: what environment, files and keyring say, and what is trusted of it."""
