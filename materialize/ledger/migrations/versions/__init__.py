"""One file for each revision. What was released is not edited: ledgers were made by it."""
