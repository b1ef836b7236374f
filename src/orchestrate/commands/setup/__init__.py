"""Setup commands: specs, keys, machine checks, schemas and the demo."""
