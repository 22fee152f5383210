"""All Feast objects of this repository: the only file that `feast apply` scans (.feastignore).

Raw views follow ``dataset.yaml``; embedding views and services follow the ledger, so that `feast
apply` after `palate train` declares the new space, and repairs a service that lags behind.
"""

from __future__ import annotations

from pathlib import Path

from entities import declare_entities
from services import declare_services
from spaces import declare_spaces
from views import declare_views

from materialize.config import load_settings
from materialize.ledger import Ledger
from transforms.clean import CleanTables

_settings = load_settings(Path(__file__).parent)
_clean = CleanTables(_settings.data_dir)
# Before `palate data validate` the id types are not known; the next apply corrects them.
_types = (_clean.user_type(), _clean.item_type()) if _clean.exists() else ("int64", "int64")

user, item = declare_entities(*_types)
_raw_views = declare_views(_settings, user, item)
# Feast finds objects as attributes of this module, so each view becomes one.
globals().update({view.name: view for view in _raw_views})
_ledger = Ledger(_settings.ledger_url)
_spaces = declare_spaces(_settings, _ledger, user, _raw_views)
globals().update({view.name: view for view in _spaces})
# Under names of their own: a consumer may be called as a view.
globals().update({f"service_{s.name}": s for s in declare_services(_ledger, _spaces)})
