"""This machine as a backend: `orchestrate.local` trains, in processes of its own."""
