"""How fast this machine trains: measured, and predicted for machines that are not here."""
