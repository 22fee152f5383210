"""Events as they come, the state of each user, and raw rows made of it."""
