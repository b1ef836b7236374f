"""Commands that serve HTTP on this machine until interrupted: serve, gateway, sandbox."""
