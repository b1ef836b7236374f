"""Whether what answers somewhere is what was trained."""
