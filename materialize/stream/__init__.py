"""Near-real-time: events in, online rows out."""
