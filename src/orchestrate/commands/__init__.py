"""The commands, one group a module; they parse and print, and leave the work to `orchestrate.service`."""
