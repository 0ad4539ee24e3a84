"""The names of files and folders in a run folder; each is written here and nowhere else.
``docs/ARCHITECTURE.md`` and the README show the whole folder."""

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
NOTES_FILE = "notes.json"
# Holds the settings that a stage was begun with, before it has a result.
BEGUN_FILE = "begun.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
# The stage's result: WEIGHTS_FILE and DESCRIPTION_FILE of ``models.files``.
FINAL_FOLDER = "final"
# Example pictures that a stage makes while it trains.
PICTURES_FOLDER = "pictures"
TENSORBOARD_FOLDER = "tensorboard"
EVALUATION_FILE = "evaluation.json"
# The restored photographs of an evaluation, one folder per photograph.
EVALUATION_FOLDER = "evaluation"
# Which process evaluates into this folder now.
EVALUATION_CLAIMS = "evaluation.claims"
