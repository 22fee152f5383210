"""Raw events to raw features, and the Feast views that read or encode them."""
