"""Models that an embedding is compared with, and the light head that reads frozen vectors."""
