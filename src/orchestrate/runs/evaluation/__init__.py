"""What tuned models are worth: who is asked, by what they are judged, and how that compares."""
