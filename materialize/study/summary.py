"""What a study found, as JSON: the one layout that tables, figures and the report read."""

from __future__ import annotations

__all__: list[str] = []

LAYOUT = """
{
  "study": "ablations",              // name
  "question": "...",                 // one line
  "axis": null,                      // what "x" is; null: the variants have no order
  "dataset": "ml1m",
  "cohort": {"fingerprint": "...", "cutoff": "2000-11-20T00:00:00", "horizon_days": 7, "rows": 1},
  "n_resamples": 500,
  "command": "palate study run ablations",
  "variants": [                      // the default first
    {
      "name": "default", "title": "default", "x": null,
      "changes": {...},              // drop, drop_elements, model, training, age_days that differ
      "seeds": [0, 1],               // finished
      "embedding_dim": 120, "n_inputs": 517, "n_parameters": 1,
      "training_rows": 15069, "epochs": 28.5, "seconds": 11.2, // means over seeds
      "encoder_versions": ["...", "..."]
    }
  ],
  "results": [
    {
      "task": "probe", "metric": "auc_micro", "group": "all", "variant": "no_profile",
      "higher_is_better": true, "n_users": 643, "n_rows": 1389,
      "value": 0.76, "low": 0.75, "high": 0.77,       // mean over seeds, 95 % interval over users
      "by_seed": [0.761, 0.759],
      "difference": {                // to the default on the same users and seeds; null for it
        "value": -0.01, "low": -0.02, "high": 0.0, "p": 0.04, "p_holm": 0.3
      }
    }
  ],
  "drift": [                         // study cadence only
    {
      "variant": "age-7d", "seed": 0, "days": 7, "users": 4000,
      "two_sample_auc": {"value": 0.6, "low": 0.58, "high": 0.62},
      "cosine": {"value": 0.99, "low": 0.98, "high": 0.99}
    }
  ]
}
"""
