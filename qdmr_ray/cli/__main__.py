"""``python -m qdmr_ray.cli`` is the ``qdmr`` command."""

from qdmr_ray.cli.main import main

if __name__ == "__main__":
    main()
