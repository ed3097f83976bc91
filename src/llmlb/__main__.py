"""``python -m llmlb`` is the ``llmlb`` command."""

from llmlb.cli.main import main

if __name__ == "__main__":
    main()
