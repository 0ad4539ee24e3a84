"""The ``qdmr`` command: one file per group of commands, which ``main.py`` assembles."""
