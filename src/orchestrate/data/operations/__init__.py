"""What users do with data: one module for each command of `orchestrate data`."""
