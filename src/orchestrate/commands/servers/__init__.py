"""What answers over HTTP on this machine until it is ended: serve, gateway, sandbox."""
