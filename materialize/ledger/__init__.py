"""The ledger: which spaces, runs, consumers and bridges exist, and every change of them."""

from materialize.ledger.book import Ledger
from materialize.ledger.records import (
    Bridge,
    Consumer,
    Erasure,
    Pin,
    Run,
    Space,
    Transition,
)

__all__ = ["Bridge", "Consumer", "Erasure", "Ledger", "Pin", "Run", "Space", "Transition"]
