"""What a host sends: transferred so that it goes on where it stopped, unpacked so that it is safe to load."""
