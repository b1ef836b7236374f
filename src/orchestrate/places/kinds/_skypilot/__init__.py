"""SkyPilot's own client, in an environment of its own: its pins would hold ours back."""
