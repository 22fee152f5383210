"""Jobs with side effects, from validation to the report, and the command line."""
