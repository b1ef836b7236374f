"""Models on held-out rows: what they answer, how good that is, and what so many rows can prove."""
