"""Trained networks on disk: save, load, the authors' files, export, the store that runs share."""
