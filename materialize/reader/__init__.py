"""How serving code reads embeddings: within a time, from Redis without Feast in between."""
