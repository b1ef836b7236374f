"""An earlier name of what lies in `orchestrate.data`, kept for plug-ins."""
